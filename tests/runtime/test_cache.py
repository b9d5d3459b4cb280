"""Kept answers and shared work, in virtual time: who waits keeps its own deadline, and may leave on its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import pytest
from collector import garbage

import penstock as ps
from penstock.core.check import check, idle
from penstock.core.policy.cache import footprint
from penstock.errors import ConfigError, DeadlineExceeded, PenstockError, ShuttingDown
from penstock.sim.loop import VirtualLoop


def virtually(*services: Any, grace: float = 0.0) -> Callable[[Callable[[ps.Runtime], Coroutine[Any, Any, None]]], ps.Runtime]:
    """Run a body in a runtime in virtual time; afterwards everything must have come back."""

    def with_body(body: Callable[[ps.Runtime], Coroutine[Any, Any, None]]) -> ps.Runtime:
        loop = VirtualLoop()

        async def main() -> ps.Runtime:
            async with ps.Runtime(*services, clock=loop.time, watch=False, grace=grace) as runtime:
                loop.watch(lambda: check(runtime.scheduler, loop.time()))  # the laws, between any two callbacks
                await body(runtime)
                for binding in runtime.bindings.values():
                    assert binding.sharing is None or not binding.sharing.flights
                idle(runtime.scheduler)
            return runtime

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runtime = runner.run(main())
        assert not loop.failures, loop.failures
        return runtime

    return with_body


class Bodies:
    """Services with a cache that count how often their body ran, and how often it was cancelled."""

    def __init__(self, seconds: float = 1.0, **cache: Any) -> None:
        self.begun: Counter[Any] = Counter()
        self.cancelled = 0

        async def slow(x: Any) -> Any:
            self.begun[x] += 1
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if x == "bad":
                raise ValueError(x)
            return [x]

        async def slows(xs: list[Any]) -> list[Any]:
            self.begun.update(xs)
            await asyncio.sleep(seconds)
            return [ValueError(x) if x == "bad" else [x] for x in xs]

        self.single = ps.service(slow, name="single", cache=ps.Cache(**cache))
        self.batched = ps.service(slows, name="batched", batch=ps.Batch(max_size=4, max_wait=0.0), cache=ps.Cache(**cache))

    def __iter__(self) -> Any:
        return iter((self.single, self.batched))


def lines(runtime: ps.Runtime) -> list[tuple[str, str]]:
    runtime.log.flush()
    return [(entry[3], entry[11]) for entry in runtime.log.recent]


@pytest.mark.parametrize("kind", ["single", "batched"])
def test_a_kept_answer_is_given_again_and_logged_as_such(kind: str) -> None:
    bodies = Bodies()
    service = getattr(bodies, kind)

    async def body(runtime: ps.Runtime) -> None:
        first = service("a")
        answer = await first
        again = service(x="a")  # by name or by position is the same
        assert await again is answer
        assert (again.status, again.timing.total) == ("done", 0.0)
        assert again.id and again.id != first.id
        assert await asyncio.gather(service("a"), service("b")) == [["a"], ["b"]]

    runtime = virtually(service)(body)
    assert bodies.begun == {"a": 1, "b": 1}
    why = "alone" if kind == "single" else "wait"
    assert [how for _, how in lines(runtime)] == [why, "hit", "hit", why]
    assert {entry[10] for entry in runtime.log.recent if entry[11] == "hit"} == {0}  # no start is counted


@pytest.mark.parametrize("kind", ["single", "batched"])
def test_errors_are_shared_but_never_kept(kind: str) -> None:
    bodies = Bodies()
    service = getattr(bodies, kind)

    async def body(runtime: ps.Runtime) -> None:
        results = await asyncio.gather(service("bad"), service("bad"), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError]
        with pytest.raises(ValueError, match="bad"):
            await service("bad")

    runtime = virtually(service)(body)
    assert bodies.begun == {"bad": 2}
    assert Counter(outcome for outcome, _ in lines(runtime)) == {"failed": 3}


def test_answers_grow_too_old() -> None:
    bodies = Bodies(ttl=10.0)

    async def body(runtime: ps.Runtime) -> None:
        await bodies.single(1)
        await asyncio.sleep(9.0)
        await bodies.single(1)
        assert bodies.begun == {1: 1}
        await asyncio.sleep(1.5)
        await bodies.single(1)
        assert bodies.begun == {1: 2}

    virtually(bodies.single)(body)


def test_keys_know_types_and_may_be_the_users() -> None:
    bodies = Bodies()

    async def typed(runtime: ps.Runtime) -> None:
        for value in (1, True, 1.0, "1", b"1", None, (1,), {"a": [1]}):
            await bodies.single(str(value) if isinstance(value, dict) else value)
        assert sum(bodies.begun.values()) == 8

    virtually(bodies.single)(typed)
    keyed = Bodies(key=lambda x: None if x == "never" else ["unhashable"] if x == "odd" else x[0])

    async def body(runtime: ps.Runtime) -> None:
        assert await keyed.single("abc") == await keyed.single("axy") == ["abc"]
        await asyncio.gather(keyed.single("never"), keyed.single("never"))
        assert keyed.begun == {"abc": 1, "never": 2}
        with pytest.raises(ConfigError, match="cannot be hashed"):
            await keyed.single("odd")

    virtually(keyed.single)(body)

    async def unkeyed(runtime: ps.Runtime) -> None:
        with pytest.raises(ConfigError, match="give Cache"):
            await bodies.single(object())

    virtually(bodies.single)(unkeyed)


@pytest.mark.parametrize("kind", ["single", "batched"])
def test_equal_calls_in_flight_share_one_work(kind: str) -> None:
    bodies = Bodies(size_bytes=0)
    service = getattr(bodies, kind)

    async def body(runtime: ps.Runtime) -> None:
        calls = [service("a").start()]
        await asyncio.sleep(0.4)
        calls += [service("a").start() for _ in range(9)]
        assert await asyncio.gather(*calls) == [["a"]] * 10
        assert [call.timing.total for call in calls] == [pytest.approx(1.0)] + [pytest.approx(0.6)] * 9
        await service("a")  # nothing was kept

    runtime = virtually(service)(body)
    assert bodies.begun == {"a": 2}
    assert Counter(how for _, how in lines(runtime))["shared"] == 9
    assert len({entry[0] for entry in runtime.log.recent}) == 11  # everybody has a line under an id of its own


@pytest.mark.parametrize("kind", ["single", "batched"])
@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_the_work_goes_on_for_those_who_stay(kind: str, leaver: int) -> None:
    bodies = Bodies()
    service = getattr(bodies, kind)

    async def body(runtime: ps.Runtime) -> None:
        calls = [service("a").start() for _ in range(3)]
        await asyncio.sleep(0.5)
        assert calls[leaver].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(r, asyncio.CancelledError) for r in results] == [n == leaver for n in range(3)]
        assert calls[leaver].status == "cancelled"
        assert not calls[leaver].cancel()

    runtime = virtually(service)(body)
    assert bodies.begun == {"a": 1} and bodies.cancelled == 0
    assert Counter(outcome for outcome, _ in lines(runtime)) == {"cancelled": 1, "ok": 2}
    assert len({entry[0] for entry in runtime.log.recent}) == 3


def test_the_work_stops_when_the_last_has_left() -> None:
    bodies = Bodies()

    async def body(runtime: ps.Runtime) -> None:
        tasks = [asyncio.ensure_future(_await(bodies.single("a"))) for _ in range(3)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        again = bodies.single("a").start()  # does not join what is dying
        await asyncio.sleep(0)
        assert bodies.cancelled == 1
        assert await again == ["a"]

    runtime = virtually(bodies.single)(body)
    assert bodies.begun == {"a": 2}
    assert Counter(outcome for outcome, _ in lines(runtime)) == {"cancelled": 3, "ok": 1}


async def _await(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("kind", ["single", "batched"])
@pytest.mark.parametrize("withins", [(0.5, None), (None, 0.5), (0.5, 3.0), (3.0, 0.5), (0.3, 0.5), (0.5, 0.3), (0.3, 0.3)])
def test_everybody_keeps_their_own_deadline(kind: str, withins: tuple[float | None, ...]) -> None:
    bodies = Bodies()
    service = getattr(bodies, kind)

    async def body(runtime: ps.Runtime) -> None:
        calls = []
        for within in withins:
            with ps.budget(within=within) if within else ps.budget():
                calls.append(service("a").start())
        ends: list[float] = []
        for call in calls:
            call.add_done_callback(lambda _: ends.append(runtime.clock()))
        results = await asyncio.gather(*calls, return_exceptions=True)
        for within, result, call in zip(withins, results, calls, strict=True):
            expired = within is not None and within < 1
            assert isinstance(result, DeadlineExceeded) if expired else result == ["a"]
            assert call.timing.total == pytest.approx(within if expired else 1.0, abs=0.003)
        assert sorted(ends) == pytest.approx(sorted(min(w or 1.0, 1.0) for w in withins), abs=0.003)

    runtime = virtually(service)(body)
    short = sum(within is not None and within < 1 for within in withins)
    assert Counter(outcome for outcome, _ in lines(runtime)) == Counter({"expired": short, "ok": 2 - short})
    assert bodies.cancelled == (short == 2 and kind == "single")


def test_what_runs_inside_does_not_end_with_the_first_caller() -> None:
    @ps.service
    async def inner() -> str:
        await asyncio.sleep(1.0)
        return "inner"

    @ps.service(cache=ps.Cache())
    async def outer() -> str:
        return await inner()

    async def body(runtime: ps.Runtime) -> None:
        with ps.budget(within=0.5):
            first = outer().start()
        second = outer().start()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[0], DeadlineExceeded) and results[1] == "inner"

    virtually(outer, inner)(body)


def test_the_more_urgent_starts_its_own() -> None:
    bodies = Bodies()

    async def body(runtime: ps.Runtime) -> None:
        slow = bodies.single("a").start()
        await asyncio.sleep(0.1)
        with ps.budget(priority=-1):
            urgent = bodies.single("a").start()
        await asyncio.sleep(0.1)
        joined = bodies.single("a").start()
        await asyncio.gather(slow, urgent, joined)
        assert joined.timing.total == pytest.approx(0.9)

    virtually(bodies.single)(body)
    assert bodies.begun == {"a": 2}


def test_nobody_waits_in_a_circle() -> None:
    @ps.service(cache=ps.Cache(key=lambda n: "same"))
    async def down(n: int) -> int:
        await asyncio.sleep(0.1)
        return 0 if n == 0 else 1 + await down(n - 1)

    @ps.service(cache=ps.Cache(key=lambda n: "ping"))
    async def ping(n: int) -> int:
        await asyncio.sleep(0.1)
        return 0 if n == 0 else 1 + await pong(n - 1)

    @ps.service(cache=ps.Cache(key=lambda n: "pong"))
    async def pong(n: int) -> int:
        await asyncio.sleep(0.1)
        return 0 if n == 0 else 1 + await ping(n - 1)

    @ps.service(limit=ps.Fixed(1))
    async def narrow(n: int) -> int:
        await asyncio.sleep(0.1)
        return await wide(n) if n else 0

    @ps.service(cache=ps.Cache(key=lambda n: "wide"))
    async def wide(n: int) -> int:
        await asyncio.sleep(0.2)
        return 7 if n else await narrow(0)  # waits for whoever is in `narrow`

    async def body(runtime: ps.Runtime) -> None:
        assert await down(3) == 3
        assert await asyncio.gather(ping(2), pong(2)) == [3, 2]  # one of them waits for the other, not both
        first = wide(0).start()
        await asyncio.sleep(0.05)
        assert await narrow(1) == 7  # would wait for `first`, and `first` for it
        assert await first == 0

    virtually(down, ping, pong, narrow, wide)(body)


def test_refusals_reach_everybody_and_draining_takes_nothing_new() -> None:
    bodies = Bodies()

    async def body(runtime: ps.Runtime) -> None:
        await bodies.single("kept")
        calls = [bodies.single("a").start() for _ in range(2)]
        await asyncio.sleep(0.5)
        await runtime.drain(0.0)
        results = await asyncio.gather(*calls, bodies.single("kept"), return_exceptions=True)
        assert [type(result) for result in results] == [ShuttingDown] * 3

    virtually(bodies.single)(body)


def test_a_failure_before_the_start_leaves_nothing_behind() -> None:
    bodies = Bodies()

    def size(x: Any) -> int:
        raise LookupError(x)

    async def odd(xs: list[Any]) -> list[Any]:
        return xs

    service = ps.service(odd, batch=ps.Batch(), cache=ps.Cache(), size=size)

    async def body(runtime: ps.Runtime) -> None:
        for _ in range(2):
            with pytest.raises(LookupError):
                await service("a")

    virtually(service, bodies.single)(body)


def test_streams_are_refused() -> None:
    async def many() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="a stream cannot be cached"):
        ps.service(many, cache=ps.Cache())
    for wrong in ({"size_bytes": -1}, {"ttl": 0.0}, {"ttl": float("nan")}):
        with pytest.raises(ConfigError):
            ps.Cache(**wrong)  # type: ignore[arg-type]


def test_threads_share_too() -> None:
    begun: list[str] = []

    @ps.service(cache=ps.Cache(), on=ps.Thread(2))
    def upper(text: str) -> str:
        begun.append(text)
        return text.upper()

    with ps.Runtime(upper):
        futures = [upper.submit(text) for text in ("a", "b") * 20]
        assert [future.result(30) for future in futures] == ["A", "B"] * 20
        assert upper.submit("a").result(30) == "A"
    assert sorted(begun) == ["a", "b"]


def test_the_least_recently_used_goes_first() -> None:
    state = ps.Cache(size_bytes=3 * (footprint(b"x" * 1000) + footprint("a") + 250)).state()
    for key in "abc":
        state.put(key, b"x" * 1000, 0.0)
    assert state.get("a", 0.0) is not None
    state.put("d", b"x" * 1000, 0.0)
    assert list(state.entries) == ["c", "a", "d"]
    state.put("c", b"y" * 1000, 0.0)
    state.put("huge", b"z" * 100_000, 0.0)
    assert list(state.entries) == ["a", "d", "c"]
    assert state.used == sum(size for _, _, size in state.entries.values()) <= state.policy.size_bytes


def test_footprints_are_near_the_truth() -> None:
    np = pytest.importorskip("numpy")
    assert footprint(np.zeros(1000)) == pytest.approx(8000, rel=0.05)
    assert footprint([float(n) for n in range(10_000)]) == pytest.approx(10_000 * 32, rel=0.05)
    assert footprint({"a": "x" * 10_000, "b": ["y" * 5000] * 1}) == pytest.approx(15_000, rel=0.1)
    looped: list[Any] = []
    looped.append(looped)
    assert footprint(looped) < 10_000


@pytest.mark.parametrize("seed", range(60))
def test_storms_of_equal_calls(seed: int) -> None:
    random = Random(seed)

    async def work(x: int) -> int:
        await asyncio.sleep(random.random())
        if random.random() < 0.2:
            raise ValueError(x)
        return x

    async def works(xs: list[int]) -> list[Any]:
        await asyncio.sleep(random.random())
        return [ValueError(x) if random.random() < 0.2 else x for x in xs]

    cache = ps.Cache(ttl=random.choice((0.5, 100.0)), size_bytes=random.choice((0, 1000, 1 << 20)))
    single = ps.service(work, name="single", cache=cache, limit=ps.Fixed(2), retry=ps.Retry(attempts=2), safe=True)
    batched = ps.service(works, name="batched", cache=cache, batch=ps.Batch(max_size=3, max_wait=0.1))
    calls: list[Any] = []

    @ps.service
    async def nested(x: int) -> int:
        inner = single(x)
        calls.append(inner)
        return await inner

    async def caller() -> None:
        await asyncio.sleep(4 * random.random())
        with ps.budget(within=random.choice((None, 0.2, 0.7, 3.0)), priority=random.choice((0, 0, 0, 1))):
            call = random.choice((single, batched, nested))(random.randrange(3))
        calls.append(call)
        task = asyncio.ensure_future(_await(call)) if random.random() < 0.5 else call.start()
        if random.random() < 0.3:
            await asyncio.sleep(random.random())
            random.choice((task.cancel, call.cancel))()
        try:
            assert await task in (0, 1, 2)
        except (ValueError, PenstockError):
            pass
        except asyncio.CancelledError:
            assert call.status == "cancelled" or call.request.outcome

    async def body(runtime: ps.Runtime) -> None:
        await asyncio.gather(*(caller() for _ in range(40)))
        await asyncio.sleep(10)
        runtime.log.flush()
        counted = Counter(entry[0] for entry in runtime.log.recent)
        for call in calls:
            if call.request.submitted:
                assert counted[call.id] == 1, (seed, call, counted[call.id])
        assert len(counted) == sum(bool(call.request.submitted) for call in calls), seed

    virtually(single, batched, nested)(body)


def test_shared_works_leave_no_cycles() -> None:
    bodies = Bodies(seconds=0.0, size_bytes=0)

    async def body(runtime: ps.Runtime) -> None:
        await bodies.single("warm")
        with garbage() as found:
            for n in range(10):
                await asyncio.gather(bodies.single(n), bodies.single(n))
            await asyncio.sleep(1)
        assert not found

    virtually(bodies.single)(body)
