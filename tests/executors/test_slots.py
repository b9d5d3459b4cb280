"""Continuous batching: who steps when, in the bookkeeping alone and in real threads and tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.core.check import idle
from penstock.errors import BadResult, ConfigError, ShuttingDown, StreamOverflow, TooLarge
from penstock.executors.child.outcome import Verdict
from penstock.executors.child.stepper import Stepper
from penstock.sim.loop import VirtualLoop

from . import slot_bodies as bodies
from .slot_bodies import inline, last, strict, threaded, two


def stepper(**options: Any) -> Stepper:
    return Stepper("model", **{"budget": None, "stretch": 1.5, "buffer": 8, "stream": True, "drop_slow": False, **options})


# The bookkeeping


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_request_ends_once_and_every_step_is_within_its_bounds(data: st.DataObject) -> None:
    size, budget = data.draw(st.integers(1, 6)), data.draw(st.none() | st.integers(1, 20))
    buffer = data.draw(st.integers(1, 5))
    s = stepper(budget=budget, buffer=buffer)
    free, running, ended = list(range(size)), {}, []
    left: dict[int, int] = {}
    ahead: dict[int, int] = {}
    got: dict[int, list[int]] = {}
    done: dict[int, Any] = {}
    wants = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=15))
    waiting = list(enumerate(wants))
    key_of = {}
    for _ in range(400):
        action = data.draw(st.sampled_from(["join", "step", "step", "step", "read", "leave"]))
        if action == "join" and waiting and free:
            key, (units, n) = waiting.pop(0)
            slot = free.pop()
            running[slot], left[slot], ahead[key], got[key] = key, units, 0, []
            key_of[key] = n
            s.join(slot, key, units or None)
        elif action == "read" and running:
            slot = data.draw(st.sampled_from(sorted(running)))
            key = running[slot]
            if ahead[key]:
                s.acknowledge(slot, key, ahead[key])
                ahead[key] = 0
        elif action == "leave" and running:
            slot = data.draw(st.sampled_from(sorted(running)))
            s.leave(slot, running[slot])
        elif action == "step" and not s.idle:
            plan = s.plan()
            starts = {slot: n for slot, n in plan.items() if left[slot]}
            assert set(plan) <= set(running)
            assert all(n == 1 for slot, n in plan.items() if slot not in starts)
            assert all(0 < n <= left[slot] for slot, n in starts.items())
            if budget is not None:
                assert sum(starts.values()) <= max(1, budget - (len(plan) - len(starts)))
            paused = {slot for slot in running if not left[slot] and ahead[running[slot]] >= buffer}
            assert set(plan) - set(starts) == {slot for slot in running if not left[slot]} - paused  # every step is full
            if any(left.get(slot) for slot in running):
                assert starts  # and nobody starves at the start
            out = []
            for slot, n in plan.items():
                left[slot] = max(0, left[slot] - n)
                if left[slot]:
                    continue
                key = running[slot]
                if len(got[key]) >= key_of[key]:
                    out.append((slot, ps.END))
                else:
                    out.append((slot, len(got[key])))
            s.absorb(plan, out, 0.01)
        items, ends = s.take()
        for key, item in items:
            got[key].append(item)
            ahead[key] += 1
            assert ahead[key] <= buffer
        for key, result in ends:
            assert key not in done
            done[key] = result
            slot = next(slot for slot, other in running.items() if other == key)
            del running[slot], left[slot]
            ended.append(slot)
        assert sorted(s.drops) == sorted(ended)
        free += ended
        ended.clear()
        s.drops.clear()
    for key, result in done.items():
        assert got[key] == list(range(len(got[key])))
        if result is None:
            assert len(got[key]) == key_of[key]


def test_starts_are_worked_off_beside_the_others_at_the_price_that_was_learned() -> None:
    s = stepper(stretch=1.5, buffer=10**9)
    for slot in range(4):
        s.join(slot, slot, None)
    for _ in range(50):
        s.absorb(plan := s.plan(), [(slot, 1) for slot in plan], 0.010)
    s.join(4, 4, 100_000)
    for _ in range(60):
        plan = s.plan()
        seconds = 0.010 + 0.0001 * plan[4]
        s.absorb(plan, [(slot, 1) for slot in range(4)], seconds)
    assert plan[4] == pytest.approx(50, abs=2)
    assert seconds <= 0.0155


@pytest.mark.parametrize(("crowd", "times"), [(1, 1.5), (4, 3.0), (40, 8.0)])
def test_every_start_adds_as_much_to_a_step_within_a_bound(crowd: int, times: float) -> None:
    """Prompts that come together are read together: read one after the other, each would make the others' steps longer."""
    s = stepper(buffer=10**9)
    for slot in range(4):
        s.join(slot, slot, None)
    for _ in range(50):
        s.absorb(plan := s.plan(), [], 0.010)
    for slot in range(4, 4 + crowd):
        s.join(slot, slot, 100_000)
    for _ in range(60):
        plan = s.plan()
        seconds = 0.010 + 0.0001 * sum(units for slot, units in plan.items() if slot >= 4)
        s.absorb(plan, [], seconds)
    assert seconds == pytest.approx(0.010 * times, rel=0.02)


def test_a_step_is_as_long_as_the_pace_allows_whatever_the_model_costs() -> None:
    s = stepper(longest=0.1, buffer=10**9)
    for slot in range(40):
        s.join(slot, slot, None)
    joined, units = 40, []
    s.join(10_000, "long", 10**9)
    for step in range(400):
        plan = s.plan()
        seconds = 0.029 + 0.00032 * joined + 0.000095 * plan[10_000]
        s.absorb(plan, [], seconds)
        units.append(plan[10_000])
        if step % 8 == 0:
            s.join(joined, joined, None)
            joined += 1
        assert step < 20 or 0.085 < seconds <= 0.1, f"step {step} of {seconds:.3f} s"
    assert units[-1] < units[30] - 100, "more of them under way leave less for starts"


def test_early_starts_go_before_others_in_their_order() -> None:
    s = stepper(budget=10)
    for slot, early in enumerate((False, False, True, True)):
        s.join(slot, slot, 15, early)
    order = []
    while s.starting:
        plan = s.plan()
        order += [slot for slot in plan if slot in s.starting]
        s.absorb(plan, [], 0.01)
    assert list(dict.fromkeys(order)) == [2, 3, 0, 1]


def test_what_add_and_step_must_not_do() -> None:
    s = stepper()
    s.join(0, "a", -1)
    s.join(1, "b", "many")
    s.join(2, "c", None)
    plan = s.plan()
    with pytest.raises(ValueError, match="which was not in this step"):
        s.absorb(plan, [(0, 1)], 0.1)
    s.fail(plan, ValueError("no"))
    assert [(key, type(result)) for key, result in s.take()[1]] == [("a", Verdict), ("b", Verdict), ("c", ValueError)]
    assert sorted(s.drops) == [0, 1, 2]
    assert s.idle


# Real threads and tasks


EACH = pytest.mark.parametrize(
    "words", [threaded, inline, two, bodies.child, bodies.children, bodies.async_child], ids=lambda s: s.name
)


def run(body: Callable[[ps.Runtime], Awaitable[Any]], *services: Any) -> Any:
    async def main() -> Any:
        async with ps.Runtime(*services) as runtime, asyncio.timeout(30):
            result = await body(runtime)
            while runtime.busy():
                await asyncio.sleep(0.001)
            return result

    return asyncio.run(main())


async def said(call: Any) -> list[str]:
    return [word async for word in call]


@EACH
def test_streams_are_complete_and_in_order(words: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        answers = await asyncio.gather(*(said(words(f"w{n}", n)) for n in range(20)))
        assert answers == [[f"w{n}"] * n for n in range(20)]
        assert runtime.snapshot()[words.name].outcomes == {"ok": 20}

    run(body, words)


@EACH
def test_a_failure_is_its_own(words: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        results = await asyncio.gather(
            said(words("fine", 3)), said(words("fail", 3)), said(words("never", -1)), return_exceptions=True
        )
        assert results[0] == ["fine"] * 3
        assert isinstance(results[1], KeyError)
        assert isinstance(results[2], ValueError)
        with pytest.raises(RuntimeError, match="boom"):
            await said(words("explode", 1))
        assert await said(words("after", 2)) == ["after"] * 2

    run(body, words)


@EACH
def test_leaving_frees_the_slot_between_steps(words: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        for _ in range(12):  # more often than there are slots
            async for _ in words("on and on", 10**9):
                break
        assert await said(words("next", 1)) == ["next"]
        while runtime.busy():
            await asyncio.sleep(0.001)
        assert runtime.snapshot()[words.name].outcomes == {"ok": 1, "cancelled": 12}

    run(body, words)


@pytest.mark.parametrize("last", [last, bodies.last_child], ids=lambda s: s.name)
def test_the_last_item_is_the_answer_where_nothing_streams(last: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        assert await asyncio.gather(*(last(f"w{n}", 3) for n in range(5))) == [f"w{n}" for n in range(5)]
        with pytest.raises(BadResult, match="without an item"):
            await last("nothing", 0)
        call = last("long", 10**9).start()
        while call.status != "running":
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(body, last)


@EACH
def test_a_slow_reader_pauses_its_own_slot_only(words: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        slow = words("slow", 500)
        reading = aiter(slow)
        assert await anext(reading) == "slow"
        for n in range(5):
            assert await said(words(f"fast{n}", 200)) == [f"fast{n}"] * 200
        assert [word async for word in reading] == ["slow"] * 499

    run(body, words)


@pytest.mark.parametrize("strict", [strict, bodies.strict_child], ids=lambda s: s.name)
def test_a_slow_reader_is_dropped_where_the_service_says_so(strict: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        reading = aiter(strict("slow", 500))
        assert await anext(reading) == "slow"
        while runtime.snapshot()[strict.name].in_flight:
            await asyncio.sleep(0.001)
        with pytest.raises(StreamOverflow, match="4 items behind"):
            async for _ in reading:
                pass

    run(body, strict)


@pytest.mark.parametrize("place", [ps.Thread(2), ps.Process(2)], ids=lambda place: type(place).__name__)
def test_a_constructor_that_raises_is_heard_at_the_start(place: Any) -> None:
    async def body() -> None:
        async with ps.Runtime(ps.service(bodies.Broken, name="broken", batch=ps.Slots(2), on=place)):
            pass

    with pytest.raises(OSError, match="no weights"):
        asyncio.run(body())


@EACH
def test_draining_lets_streams_end(words: Any) -> None:
    async def body() -> list[str]:
        runtime = ps.Runtime(words)
        async with runtime:
            reading = asyncio.ensure_future(said(words("end", 30)))
            while not runtime.busy():
                await asyncio.sleep(0)
        return await reading

    assert asyncio.run(body()) == ["end"] * 30


def test_a_grace_that_is_over_ends_streams_with_an_error() -> None:
    async def body() -> None:
        runtime = ps.Runtime(threaded, grace=0.05)
        async with runtime:
            reading = asyncio.ensure_future(said(threaded("on", 10**9)))
            while not runtime.busy():
                await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await reading
        while any(t.name.startswith("penstock-words") for t in threading.enumerate()):
            await asyncio.sleep(0.001)

    asyncio.run(body())


def test_a_step_on_the_loop_that_does_not_end_is_cut_off() -> None:
    class Endless(bodies.AsyncWords):
        async def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:  # type: ignore[override]
            await asyncio.Event().wait()
            return []

    endless = ps.service(Endless, name="endless", batch=ps.Slots(1))

    async def main() -> None:
        async with ps.Runtime(endless, grace=0.0) as runtime:
            call = asyncio.ensure_future(said(endless("word", 1)))
            while not runtime.snapshot()["endless"].in_flight:
                await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}
        idle(runtime.scheduler)

    asyncio.run(main())


def test_fair_share_pays_for_every_item() -> None:
    """Two tenants, one with streams ten times as long: each gets half of the slots' time."""
    given: dict[str, int] = {"long": 0, "short": 0}

    class Timed(bodies.AsyncWords):
        pass

    timed = ps.service(Timed, name="timed", batch=ps.Slots(4), order=ps.FairShare(), limit=())

    async def caller(tenant: str, n: int) -> None:
        with ps.budget(tenant=tenant):
            while True:
                async for _ in timed("w", n):
                    given[tenant] += 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ps.Runtime(timed, clock=loop.time, watch=False):
            tasks = [loop.create_task(caller(tenant, n)) for tenant, n in (("long", 100), ("short", 10)) for _ in range(16)]
            await asyncio.sleep(60)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    share = given["short"] / sum(given.values())
    assert 0.42 < share < 0.58, given


def test_fair_share_counts_what_a_start_costs_before_it_starts() -> None:
    """Two tenants, one with inputs of 900 units and one of 100, and answers of 50 items at 2: shares of 1 to 3 in cost."""
    cost = {"large": 900.0, "small": 100.0}
    given = dict.fromkeys(cost, 0.0)
    order = ps.FairShare(weights={"large": 1.0, "small": 3.0})
    reader = ps.service(
        bodies.AsyncWords,
        name="reader",
        batch=ps.Slots(4, cost=lambda word, n: len(word), item_cost=2.0),
        order=order,
        limit=(),
    )

    async def caller(tenant: str) -> None:
        with ps.budget(tenant=tenant):
            while True:
                async for _ in reader("x" * int(cost[tenant]), 50):
                    given[tenant] += 2.0
                given[tenant] += cost[tenant]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ps.Runtime(reader, clock=loop.time, watch=False):
            tasks = [loop.create_task(caller(tenant)) for tenant in cost for _ in range(16)]
            await asyncio.sleep(200)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert given["small"] / sum(given.values()) == pytest.approx(0.75, rel=0.05), given


def test_slots_take_of_a_budget_what_a_prompt_and_its_answer_need() -> None:
    """Tokens of a key-value cache: `needs` is asked with what callers pass, as `cost` is."""
    at_once: list[int] = []
    cache = ps.Pool("kv", capacity=200)

    class Counted(bodies.AsyncWords):
        async def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:  # type: ignore[override]
            at_once.append(sum(len(word) + 10 for word, *_ in self.requests.values()))
            return await super().step(slots)

    words = ps.service(Counted, name="counted", batch=ps.Slots(8), needs={cache: lambda word, n: len(word) + n})

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def one(length: int) -> int:
            return len([item async for item in words("x" * length, 10)])

        async with ps.Runtime(words, clock=loop.time, watch=False):
            assert await asyncio.gather(*(one(length) for length in (50, 90, 20, 150, 5, 70) * 3)) == [10] * 18
            with pytest.raises(TooLarge):
                await one(500)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert 150 < max(at_once) <= 200


def test_a_cost_that_is_no_number_is_the_callers_to_hear_of() -> None:
    wrong = ps.service(bodies.AsyncWords, name="wrong", batch=ps.Slots(2, cost=lambda word, n: float("nan")))

    async def main() -> None:
        async with ps.Runtime(wrong):
            with pytest.raises(ConfigError, match="finite number"):
                async for _ in wrong("w", 1):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: ps.Slots(0), "at least 1"),
        (lambda: ps.Slots(item_cost=-1.0), "at least 0"),
        (lambda: ps.Slots(stretch=1.0), "greater than 1"),
        (lambda: ps.Slots(slow="wait"), "pause"),  # type: ignore[arg-type]
        (lambda: ps.service(lambda x: x, name="f", batch=ps.Slots(2)), "is no class"),
        (lambda: ps.service(type("No", (), {"add": 1}), batch=ps.Slots(2)), "lacks add, step, drop"),
    ],
)
def test_contradictions_are_refused(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare()


def test_callers_see_the_signature_of_add() -> None:
    assert str(threaded.signature) == "(word: str, times: int) -> str"


def test_requests_are_spread_over_the_models() -> None:
    """Two instances of four slots: half of the requests in each, not one full and one idle."""
    models = ps.service(bodies.Words, name="models", batch=ps.Slots(4), on=ps.Thread(2))

    async def main() -> None:
        async with ps.Runtime(models) as runtime:
            streams = [models("word", 1_000_000).__aiter__() for _ in range(4)]
            for stream in streams:
                await anext(stream)
            executor: Any = runtime.bindings[models].executor
            assert [len(engine.stepper.seats) for engine in executor.engines] == [2, 2]
            for stream in streams:
                await stream.aclose()

    asyncio.run(main())
