"""What is answered in the first step of its answering, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Generator
from types import coroutine
from typing import Any

import pytest
from http_stand import get

import penstock as ps
from penstock.executors.lookout import Lookout
from penstock.http.connection import Connection
from penstock.http.handler import Handler
from penstock.http.server import Server
from penstock.http.steps import begun
from penstock.runtime import App, Runtime


@coroutine
def give(value: Any) -> Generator[Any, Any, Any]:
    return (yield value)


def test_an_answer_that_is_ready_is_given_at_once() -> None:
    async def answer() -> int:
        return 7

    assert begun(answer()) == 7


def test_the_rest_is_as_if_it_had_been_awaited_from_the_beginning() -> None:
    heard: list[Any] = []

    async def answer() -> int:
        heard.append(await give("a"))
        try:
            await give("b")
        except KeyError as error:
            heard.append(error.args[0])
        return 7

    rest = begun(answer())
    assert rest.send(None) == "a"
    assert rest.send(1) == "b"
    with pytest.raises(StopIteration) as end:
        rest.throw(KeyError(2))
    assert (heard, end.value.value) == ([1, 2], 7)


@pytest.mark.filterwarnings("ignore:coroutine '_rest' was never awaited")
@pytest.mark.parametrize("awaited", [False, True])
def test_a_rest_that_nobody_wants_is_ended(awaited: bool) -> None:
    ends: list[type] = []

    async def answer() -> None:
        try:
            await give("a")
        except BaseException as error:
            ends.append(type(error))
            raise

    rest = begun(answer())
    if awaited:
        rest.send(None)
    del rest
    gc.collect()
    assert ends == [GeneratorExit]


class Held:
    """A transport whose client sends one request and is gone in the same turn of the loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.sock if name == "socket" else None

    def is_reading(self) -> bool:
        return True


@pytest.mark.filterwarnings("ignore:coroutine '_rest' was never awaited")
def test_who_leaves_in_the_turn_of_the_request_leaves_the_queue_too() -> None:
    async def main() -> None:
        @ps.service(batch=ps.Batch(max_size=2, max_wait=30.0, max_age=30.0))
        def model(xs: list[int]) -> list[int]:
            return xs

        app = App(model)
        async with Runtime(app) as runtime:
            handler = Handler(app, runtime)
            server = Server(handler)
            server.loop = asyncio.get_running_loop()
            server._emptied, server.lookout = asyncio.Event(), Lookout()
            connection = Connection(server)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                connection.connection_made(Held(ours))  # type: ignore[arg-type]
            connection.data_received(get("/model", method="POST", body=b'{"x":1}'))
            station = runtime.scheduler.stations["model"]
            assert len(station.waiting) == 1
            connection.connection_lost(None)
            del connection
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not station.waiting
            assert station.counts["cancelled"] == 1

    asyncio.run(main())
