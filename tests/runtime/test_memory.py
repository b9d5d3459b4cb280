"""Memory budgets as users declare them, in running runtimes: with real threads, real children and probes of our own."""

from __future__ import annotations

import asyncio

import pytest

import penstock as ps
from penstock import devices
from penstock.errors import ConfigError, TooLarge
from penstock.runtime.memory import Budgets

from . import hogs

MIB = 1 << 20


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """A kind of device of our own: what each has free, or None."""
    free: dict[str, int | None] = {"toy:0": 1000, "toy:1": None}
    monkeypatch.setattr(devices, "_probes", dict(devices._probes))
    devices.register("toy", lambda device: None if (left := free[device]) is None else (left, 2000))
    return free


def test_calls_of_several_services_share_one_budget() -> None:
    ram = ps.Memory("ram", size_bytes=100)
    running, peak = 0, 0

    async def use(amount: int) -> int:
        nonlocal running, peak
        running += amount
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= amount
        return amount

    one = ps.service(use, name="one", needs={ram: lambda amount: amount})
    two = ps.service(use, name="two", needs={ram: lambda amount: amount})

    async def main() -> None:
        async with ps.Runtime(one, two):
            sizes = [10, 60, 90, 100, 30, 5, 45] * 6
            answers = await asyncio.gather(*((one, two)[n % 2](size) for n, size in enumerate(sizes)))
            assert answers == sizes
            with pytest.raises(TooLarge, match="needs 101 bytes of 'ram', which has 100 bytes in all"):
                await one(101)

    asyncio.run(main())
    assert 90 <= peak <= 100


def test_a_batch_leases_what_its_list_needs() -> None:
    ram, seen = ps.Memory("ram", size_bytes=100), []

    def model(xs: list[int]) -> list[int]:
        seen.append(list(xs))
        return xs

    service = ps.service(model, batch=ps.Batch(max_size=16, max_wait=0.05), needs={ram: lambda xs: sum(xs)})

    async def main() -> None:
        async with ps.Runtime(service):
            assert await asyncio.gather(*(service(40) for _ in range(6))) == [40] * 6

    asyncio.run(main())
    assert sorted(map(len, seen)) == [2, 2, 2]


def test_estimates_that_are_no_amount_are_told_to_the_caller() -> None:
    ram = ps.Memory("ram", size_bytes=100)

    async def body(x: float) -> float:
        return x

    service = ps.service(body, needs={ram: lambda x: x})

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            for bad in (-1.0, float("nan"), float("inf"), "much"):
                with pytest.raises(ConfigError, match="needs of 'ram' are"):
                    await service(bad)
            assert await service(0) == 0
            assert not runtime.busy()

    asyncio.run(main())
    with pytest.raises(ConfigError, match="a number or a function"):
        ps.service(body, needs={ram: "all"})
    with pytest.raises(ConfigError, match="a Pool or a Memory"):
        ps.service(body, needs={"ram": 5})


def test_a_budget_without_a_size_is_measured(probe: dict[str, int | None]) -> None:
    gpu, ram = ps.Memory("gpu", device="toy:0", share=0.8), ps.Memory("ram")

    async def body(x: int) -> int:
        return x

    service = ps.service(body, needs={gpu: lambda x: x, ram: 1})

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            assert runtime.scheduler.pools[gpu].capacity == 800
            reading = devices.memory("host")
            assert reading is not None
            assert 0 < runtime.scheduler.pools[ram].capacity < reading.total
            with pytest.raises(TooLarge, match="801 bytes of 'gpu', which has 800 bytes"):
                await service(801)

    asyncio.run(main())

    async def unknown() -> None:
        blind = ps.service(body, name="blind", needs={ps.Memory("gpu1", device="toy:1"): 5})
        with pytest.raises(ConfigError, match="cannot be measured here; give size_bytes="):
            async with ps.Runtime(blind):
                pass

    asyncio.run(unknown())


def test_what_others_take_shrinks_the_budget(probe: dict[str, int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budgets, "every", 0.001)
    gpu = ps.Memory("gpu", size_bytes=500, device="toy:0", share=0.9)
    gate: asyncio.Event

    async def body(x: int) -> int:
        await gate.wait()
        return x

    service = ps.service(body, needs={gpu: lambda x: x})

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        async with ps.Runtime(service) as runtime:
            pool = runtime.scheduler.pools[gpu]
            assert pool.capacity == 500
            first = service(100).start()
            probe["toy:0"] = 150
            while pool.effective == 500:
                await asyncio.sleep(0)
            assert pool.effective == pytest.approx(200)  # 100 leased, and 150 are free, of which 50 stay so
            second, third = service(99).start(), service(50).start()
            await asyncio.sleep(0)  # both try to begin
            assert [each.status for each in (first, second, third)] == ["running", "running", "queued"]
            gate.set()
            assert await asyncio.gather(first, second, third) == [100, 99, 50]

    asyncio.run(main())


def test_peaks_of_children_correct_the_estimates() -> None:
    """Each call really takes 64 MiB and says 32: soon it is leased twice as much."""

    async def main() -> None:
        async with ps.Runtime(hogs.hog) as runtime:
            need = runtime.bindings[hogs.hog].station.needs[0]
            for _ in range(12):
                assert await hogs.hog(64 * MIB, 32 * MIB) == 64 * MIB
            assert need.correction.samples >= 10
            assert 1.7 < need.correction.factor < 2.5
            assert need.pool.used == 0

    asyncio.run(main())
