"""Success and error callbacks: each is heard, none disturbs the others or the call."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

import penstock as ps


@ps.service
async def inline(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return x


@ps.service(on=ps.Thread(2))
def threaded(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return x


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.0))
async def batched(xs: list[int]) -> list[Any]:
    return [ValueError(x) if x < 0 else x for x in xs]


@ps.service
async def forever() -> None:
    await asyncio.Event().wait()


EVERYWHERE = pytest.mark.parametrize("service", [inline, threaded, batched], ids=lambda service: service.name)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with ps.Runtime(inline, threaded, batched, forever):
            await asyncio.wait_for(body(), 30)

    asyncio.run(main())


said: ContextVar[str] = ContextVar("said", default="")


@EVERYWHERE
def test_a_callback_runs_in_the_context_of_who_added_it(service: Any) -> None:
    async def body() -> None:
        call, heard = service(1), []
        before = said.set("adder")
        call.add_done_callback(lambda _: heard.append(said.get()))
        call.on_success(lambda _: heard.append(said.get()))
        said.reset(before)
        other = copy_context()
        other.run(said.set, "other")
        call.add_done_callback(lambda _: heard.append(said.get()), context=other)
        while len(heard) < 3:
            await asyncio.sleep(0)
        assert heard == ["adder", "adder", "other"]

    run(body)


class Heard:
    """What callbacks were told, in order, and on which threads."""

    def __init__(self, count: int) -> None:
        self.said: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self.all = asyncio.Event()
        self.count = count

    def __call__(self, name: str, error: BaseException | None = None) -> Callable[[Any], None]:
        def callback(told: Any) -> None:
            self.said.append((name, repr(told)))
            self.threads.add(threading.get_ident())
            if len(self.said) == self.count:
                self.all.set()
            if error is not None:
                raise error

        return callback


@EVERYWHERE
def test_callbacks_that_raise_disturb_neither_the_others_nor_the_call(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        heard = Heard(3)
        call = service(7).on_success(heard("first", OSError("full"))).on_error(heard("never"))
        call.on_success(heard("second", KeyError("k"))).on_success(heard("third"))
        assert await call == 7
        await heard.all.wait()
        assert heard.said == [("first", "7"), ("second", "7"), ("third", "7")]
        assert call.status == "done"

        heard = Heard(2)
        call = service(-1).on_error(heard("first", OSError("full"))).on_success(heard("never")).on_error(heard("second"))
        with pytest.raises(ValueError, match="-1"):
            await call
        await heard.all.wait()
        assert heard.said == [("first", "ValueError(-1)"), ("second", "ValueError(-1)")]
        assert heard.threads == {threading.get_ident()}
        assert call.status == "failed"
        assert await service(3) == 3

    with caplog.at_level(logging.ERROR, "penstock"):
        run(body)
    failed = [record for record in caplog.records if "a callback of" in record.getMessage()]
    assert [type(record.exc_info[1]) for record in failed if record.exc_info] == [OSError, KeyError, OSError]
    assert all(service.name in record.getMessage() for record in failed)


@EVERYWHERE
def test_a_callback_that_comes_late_is_told_too(service: Any) -> None:
    async def body() -> None:
        call = service(7).start()
        assert await call == 7
        heard = Heard(1)
        call.on_success(heard("late"))
        await heard.all.wait()
        assert heard.said == [("late", "7")]

    run(body)


def test_a_callback_starts_the_call_and_hears_of_its_cancellation() -> None:
    async def body() -> None:
        heard = Heard(1)
        call = forever().on_success(heard("never")).on_error(heard("ended"))
        assert call.status == "pending"
        await asyncio.sleep(0)
        assert call.status == "running"
        call.cancel()
        await heard.all.wait()
        assert heard.said == [("ended", "CancelledError()")]
        assert call.status == "cancelled"

    run(body)


def test_a_callback_may_make_calls_of_its_own() -> None:
    async def body() -> None:
        heard = Heard(1)
        inline(1).on_success(lambda x: threaded(x + 1).on_success(lambda y: batched(y + 1).on_success(heard("last"))))
        await heard.all.wait()
        assert heard.said == [("last", "3")]

    run(body)
