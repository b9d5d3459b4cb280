"""The load generator of row D counts what a server of known behaviour did to it: each call once, under its right name."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))
from callers import Callers

ANSWER = b"HTTP/1.1 %d Said\r\nServer: hand-made\r\nContent-Length: 7\r\n%b\r\n{'a':1}"
LONG = 60.0


class Server:
    """Does what the path says, and counts requests and connections."""

    def __init__(self) -> None:
        self.requests = self.connections = 0
        self.port = 0
        self.gone = threading.Semaphore(0)
        self.loop = asyncio.new_event_loop()
        self.up = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.serve(),))

    async def serve(self) -> None:
        self.done = asyncio.Event()
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.up.set()
        await self.done.wait()
        server.close()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                await self.answer(head.split(b" ")[1], reader, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, path: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if path == b"/silent":
            await reader.read()
        elif path == b"/busy":
            writer.write(ANSWER % (503, b""))
        elif path == b"/pieces":
            for byte in ANSWER % (200, b""):
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        elif path == b"/last":
            writer.write(ANSWER % (200, b"Connection: close\r\n"))
            writer.close()
        elif path == b"/quit":
            writer.write(ANSWER % (200, b""))
            writer.close()
            await writer.wait_closed()
            self.gone.release()
        elif path == b"/cut":
            writer.write((ANSWER % (200, b""))[:-1])
            writer.close()
        else:
            writer.write(ANSWER % (200, b""))


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    served.thread.start()
    assert served.up.wait(LONG)
    yield served
    served.loop.call_soon_threadsafe(served.done.set)
    served.thread.join()
    served.loop.close()


def callers_of(server: Server, path: str) -> Callers:
    return Callers(server.port, b"POST /%b HTTP/1.1\r\n\r\n" % path.encode())


@pytest.mark.parametrize(
    ("path", "patience", "ends"),
    [
        ("ok", LONG, "200"),
        ("busy", LONG, "503"),
        ("pieces", LONG, "200"),
        ("last", LONG, "200"),
        ("cut", LONG, "broken"),
        ("silent", 0.01, "left"),
        ("ok", 0.0, "left"),  # whatever comes after the patience has ended is no answer
    ],
)
def test_every_call_ends_once_and_as_the_server_ended_it(server: Server, path: str, patience: float, ends: str) -> None:
    callers = callers_of(server, path)
    callers.bursts(50, lambda: patience, 1)
    assert callers.ended == {ends: 50}
    assert sum(callers.seconds.values()) == callers.ended["200"]
    assert callers.waiting == 0
    assert len(callers.late) == 50
    callers.close()


def test_callers_of_all_kinds_of_patience_leave_a_silent_server(server: Server) -> None:
    callers, random = callers_of(server, "silent"), Random(1)
    callers.poisson(1000, lambda: random.expovariate(50), 0.2, Random(2))
    callers.poisson(1000, lambda: random.choice([0.0, 0.001, 0.05]), 0.2, Random(2))
    assert callers.ended == {"left": len(callers.late)}
    assert len(callers.late) > 300
    callers.close()


def test_a_connection_is_kept_after_an_answer_and_a_refusal_alone(server: Server) -> None:
    for path, kept in (("ok", True), ("busy", True), ("last", False), ("silent", False)):
        before, callers = server.connections, callers_of(server, path)
        for _ in range(5):
            callers.answers(0.01 if path == "silent" else LONG)
        assert server.connections - before == (1 if kept else 5), path
        callers.close()


def test_a_connection_that_the_server_closed_while_idle_breaks_no_call(server: Server) -> None:
    callers = callers_of(server, "quit")
    for _ in range(5):
        assert callers.answers(LONG)
        assert server.gone.acquire(timeout=LONG)
    assert callers.ended == {"200": 5}
    callers.close()
