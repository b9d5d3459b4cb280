"""`submit()` and `map()` from threads that run no loop: `concurrent.futures` futures, in every way they are used."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from typing import Any

import pytest

import penstock as ps
from penstock.core.check import idle
from penstock.errors import ConfigError, QueueFull, Refused

LONG = 30.0  # seconds: longer than anything here takes


@ps.service
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@ps.service
def inverse(x: int) -> float:
    return 1 / x


class Gated:
    """A service of one thread whose body waits; counts its starts."""

    def __init__(self, **options: Any) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.started: list[int] = []
        self.service = ps.service(self.body, name="gated", on=ps.Thread(1), **options)

    def body(self, x: int) -> int:
        self.started.append(x)
        self.begun.set()
        assert self.gate.wait(LONG)
        return x


@pytest.fixture
def gated() -> Iterator[Gated]:
    gated = Gated()
    yield gated
    gated.gate.set()


def test_a_future_has_the_answer_or_the_error_and_tells_callbacks() -> None:
    with ps.Runtime(hello, inverse):
        told: list[Any] = []
        future = hello.submit("Ada")
        future.add_done_callback(lambda done: told.append(done.result()))
        assert isinstance(future, Future)
        assert future.result(LONG) == "Hello, Ada!"
        assert told == ["Hello, Ada!"]
        assert isinstance(inverse.submit(0).exception(LONG), ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            inverse.submit(x=0).result(LONG)
        futures = {inverse.submit(n): n for n in range(1, 20)}
        assert {futures[done]: done.result() for done in as_completed(futures, LONG)} == {n: 1 / n for n in range(1, 20)}


def test_wrong_arguments_and_refusals_come_out_of_the_future() -> None:
    gated = Gated(admit=ps.Queue(items=1))
    with ps.Runtime(hello, gated.service):
        with pytest.raises(TypeError):
            hello.submit().result(LONG)
        first = gated.service.submit(1)
        assert gated.begun.wait(LONG)
        second, third = gated.service.submit(2), gated.service.submit(3)
        assert isinstance(third.exception(LONG), QueueFull)
        gated.gate.set()
        assert (first.result(LONG), second.result(LONG)) == (1, 2)


def test_a_queued_call_that_is_cancelled_never_starts(gated: Gated) -> None:
    with ps.Runtime(gated.service, hello) as runtime:
        first = gated.service.submit(1)
        assert gated.begun.wait(LONG)
        second, third = gated.service.submit(2), gated.service.submit(3)
        assert hello.submit("loop").result(LONG)  # by now both are in the queue
        assert second.cancel()
        assert wait([second], LONG).done == {second}
        with pytest.raises(CancelledError):
            second.result(0)
        gated.gate.set()
        assert (first.result(LONG), third.result(LONG)) == (1, 3)
        assert gated.started == [1, 3]
        assert not first.cancel()
        assert first.result() == 1
    idle(runtime.scheduler)


def test_a_running_body_on_the_loop_is_cancelled_with_its_future() -> None:
    begun, ended = threading.Event(), threading.Event()

    @ps.service
    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with ps.Runtime(forever):
        future = forever.submit()
        assert begun.wait(LONG)
        assert future.cancel()
        assert ended.wait(LONG)
        assert wait([future], LONG).done == {future}


def test_a_call_that_is_cancelled_inside_cancels_its_future() -> None:
    @ps.service
    async def leaves() -> None:
        raise asyncio.CancelledError

    with ps.Runtime(leaves):
        future = leaves.submit()
        with pytest.raises(CancelledError):
            future.result(LONG)
        assert future.cancelled()


def test_a_future_that_is_kept_keeps_no_inputs() -> None:
    class Big:
        pass

    @ps.service
    async def drops(big: Any) -> None: ...

    with ps.Runtime(drops):
        big = Big()
        gone = weakref.ref(big)
        future = drops.submit(big)
        future.result(LONG)
        del big
        drops.submit(None).result(LONG)  # the loop has let go of the first
        gc.collect()
        assert gone() is None
        assert future.done()


def test_submit_on_the_loop_is_refused() -> None:
    async def main() -> None:
        async with ps.Runtime(hello):
            with pytest.raises(ConfigError, match=r"use `await hello\(\.\.\.\)`"):
                hello.submit("loop")

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_that_the_runtime_is_not_there() -> None:
    with ps.Runtime(hello):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                hello.submit("Ada")
            except ConfigError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as said:
            assert b"no runtime is active to call hello in" in said.read()
        os.waitpid(child, 0)
        assert hello.submit("Ada").result(LONG) == "Hello, Ada!"


def test_map_in_order_bounded_and_with_each_error_in_its_place() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(-3, 20):
            read.append(n)
            yield n

    with ps.Runtime(inverse):
        for count, future in enumerate(inverse.map(numbers(), concurrency=4)):
            n = count - 3
            assert len(read) <= count + 4
            if n == 0:
                assert isinstance(future.exception(), ZeroDivisionError)
            else:
                assert future.result() == 1 / n
        assert len(read) == 23
        assert list(inverse.map([])) == []
        with pytest.raises(ConfigError, match="concurrency=0"):
            next(inverse.map([1], concurrency=0))


def test_an_unordered_map_does_not_wait_for_the_slow(gated: Gated) -> None:
    @ps.service(on=ps.Thread(2))
    def first_is_slow(x: int) -> int:
        return gated.body(x) if x == 0 else x

    with ps.Runtime(first_is_slow):
        futures = first_is_slow.map(range(10), concurrency=3, ordered=False)
        quick = [next(futures).result() for _ in range(9)]
        assert sorted(quick) == list(range(1, 10))
        gated.gate.set()
        assert [future.result() for future in futures] == [0]


@pytest.mark.parametrize("ordered", [True, False])
def test_breaking_off_a_map_cancels_what_has_not_ended(ordered: bool, gated: Gated) -> None:
    @ps.service(on=ps.Thread(1))
    def third_waits(x: int) -> int:
        return gated.body(x) if x == 2 else x

    with ps.Runtime(third_waits) as runtime:
        for future in third_waits.map(range(1000), concurrency=8, ordered=ordered):
            if future.result() == 1:
                break
        assert gated.begun.wait(LONG)
        gated.gate.set()
    assert gated.started == [2]
    assert runtime.scheduler.stations["third_waits"].counts["cancelled"] >= 5
    idle(runtime.scheduler)


def test_a_source_that_fails_cancels_what_runs(gated: Gated) -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise OSError("the file is cut off")

    with ps.Runtime(gated.service) as runtime:
        with pytest.raises(OSError, match="cut off"):
            list(gated.service.map(numbers(), concurrency=8))
        gated.gate.set()
    assert gated.started in ([0], [])
    idle(runtime.scheduler)


@pytest.mark.parametrize("seed", range(5))
def test_many_threads_that_call_and_leave_at_random(seed: int) -> None:
    """Every future ends, with its own answer, cancelled or refused, and every lease comes back."""

    def thread(dice: random.Random) -> None:
        pending: list[tuple[int, Future[Any]]] = []
        try:
            for n in range(1, 201):
                pending.append((n, dice.choice(services).submit(n)))
                if dice.random() < 0.3:
                    dice.choice(pending)[1].cancel()
                if dice.random() < 0.1:
                    wait([future for _, future in pending], LONG, return_when=FIRST_COMPLETED)
            for n, future in pending:
                wait([future], LONG)
                if not future.cancelled() and not isinstance(
                    future.exception(0), Refused
                ):  # callers leave: patience is learned
                    assert future.result(0) == n
        except BaseException as error:
            error.add_note(f"seed={seed}")
            broken.append(error)

    async def aecho(x: int) -> int:
        await asyncio.sleep(0)
        return x

    def echo(x: int) -> int:
        return x

    def echoes(xs: list[int]) -> list[int]:
        return list(xs)

    services = [
        ps.service(aecho),
        ps.service(echo, on=ps.Thread(2)),
        ps.service(echoes, on=ps.Thread(2), batch=ps.Batch(max_size=8, max_wait=0.0)),
    ]
    broken: list[BaseException] = []
    with ps.Runtime(*services) as runtime:
        threads = [threading.Thread(target=thread, args=(random.Random(10 * seed + n),)) for n in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    if broken:
        raise broken[0]
    idle(runtime.scheduler)
