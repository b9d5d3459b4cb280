"""The native server over real sockets: order, framing, limits, times, and the ends of connections."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collector import garbage
from http_stand import SMALL, Client, get, standing

import penstock as ps
from penstock.http import unread
from penstock.http.reader import HEAD
from penstock.http.serve import serving

Go = Callable[[Awaitable[Any]], Any]
CLOSE = "Connection: close"


def test_one_request(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            for path in ("/a", "/b"):  # the connection stays
                client.send(get(path, method="POST", body=b"abc"))
                status, head, body = await client.answer()
                assert (status, body) == (200, f"POST {path} abc".encode())
                assert b"\r\ndate: " in head
                assert b"connection" not in head
            client.send(get("/c", CLOSE))
            rest = await client.all()
            assert b"connection: close\r\n" in rest
            assert rest.endswith(b"GET /c ")
            assert stand.echo.requests[0].client[0] == "127.0.0.1"

    go(main())


def test_pipelined_requests_are_answered_in_order(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            paths = [f"/slow{i}?0.0{i % 2}" if i % 3 == 0 else f"/{i}" for i in range(60)]
            client = await stand.client()
            client.send(b"".join(get(path) for path in paths[:-1]) + get(paths[-1], CLOSE))
            answer = await client.all()
            assert answer.count(b"HTTP/1.1 200") == 60
            assert [request.path for request in stand.echo.requests] == [path.partition("?")[0] for path in paths]
            found = [int(part.split(b" ")[0]) for part in answer.split(b"GET /")[1:]]
            assert found == [i for i in range(60) if i % 3]

    go(main())


def test_pipelined_requests_are_not_all_read(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/slow?5") + get("/" + "a" * 900) * 20_000)
            (connection,) = await stand.connections(1)
            await stand.until(lambda: stand.echo.running == 1 and not connection._transport.is_reading())
            assert len(connection._reader.ready) < 16
            assert client.writer.transport.get_write_buffer_size() > 0
            client.writer.transport.abort()

    go(main())


@pytest.mark.parametrize("path", ["/stream", "/later"])
def test_chunked(go: Go, path: str) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get(path) + get("/next", CLOSE))
            answer = await client.all()
            items = 3 if path == "/stream" else 2
            first, _, rest = answer.partition(b"0\r\n\r\n")
            assert b"transfer-encoding: chunked\r\n" in first
            assert first.endswith(b"\r\n\r\n" + b"4\r\nxxxx\r\n" * items)
            assert rest.startswith(b"HTTP/1.1 200 OK\r\n")

    go(main())


@pytest.mark.parametrize("keep", [True, False])
def test_http10(go: Go, keep: bool) -> None:
    async def main() -> None:
        async with standing() as stand:
            line = b"Connection: keep-alive\r\n" if keep else b""
            answer = await stand.ask(b"GET /a HTTP/1.0\r\n" + line + b"\r\n" + b"GET /stream HTTP/1.0\r\n" + line + b"\r\n")
            if keep:
                assert b"connection: keep-alive\r\n" in answer
                assert answer.endswith(b"connection: close\r\n\r\n" + b"xxxx" * 3)  # its length is where it ends
            else:
                assert b"connection: close\r\n" in answer
                assert answer.endswith(b"GET /a ")

    go(main())


def test_head_and_bodiless(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            answer = await stand.ask(
                get("/a", method="HEAD")
                + get("/stream", method="HEAD")
                + get("/big?70000", method="HEAD")
                + get("/empty")
                + get("/z", CLOSE)
            )
            assert b"content-length: 8\r\n" in answer
            assert b"content-length: 70000\r\n" in answer
            assert answer.count(b"HTTP/1.1 ") == 5
            empty = answer.split(b"HTTP/1.1 ")[4]
            assert empty.startswith(b"204 No Content\r\n")
            assert b"content-length" not in empty
            assert b"x-a: b\r\n" in empty
            assert b"xxxx" not in answer
            assert b"bb" not in answer

    go(main())


def test_large_answers(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            for size in (65535, 65536, 5_000_000):
                client.send(get(f"/big?{size}"))
                _, _, body = await client.answer()
                assert body == b"b" * size

    go(main())


def test_sized_streams(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/sized"))
            status, head, body = await client.answer()
            assert (status, body) == (200, b"xxxxxxxx")
            assert b"chunked" not in head
            assert b"content-length: 9" in await stand.ask(get("/sized?9") + get("/never"))
            assert stand.echo.requests[-1].path == "/sized"

    go(main())


def test_expect_continue(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/slow") + get("/a", "Expect: 100-continue", "Content-Length: 3", method="POST"))
            _, head, _ = await client.answer()
            assert head.startswith(b"HTTP/1.1 200")  # the word comes after the answers before it
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            assert (await client.answer())[2] == b"POST /a abc"
            big = await stand.ask(get("/a", "Expect: 100-continue", "Content-Length: 300000", method="POST"))
            assert big.startswith(b"HTTP/1.1 413")  # and none where the body is not wanted

    go(main())


@pytest.mark.parametrize(
    ("path", "status"), [("/raise", b"500"), ("/slow-raise?0", b"500"), ("/stream-fail", b"200"), ("/unended", b"200")]
)
def test_failures_of_the_handler(go: Go, path: str, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with standing() as stand:
            answer = await stand.ask(get(path) + get("/next", CLOSE))
            assert answer.startswith(b"HTTP/1.1 " + status)
            if status == b"500":
                assert b"broken" not in answer
                assert answer.endswith(b"GET /next ")
            else:
                assert b"0\r\n\r\n" not in answer  # broken off: the client can tell
                assert b"/next" not in answer

    go(main())
    assert "the handler failed on GET" in caplog.text


def test_a_client_that_leaves_is_noticed(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            for path in ("/slow?5", "/drip"):
                client = await stand.client()
                client.send(get(path))
                if path == "/drip":
                    await client.until(b"xxxx")
                else:
                    await stand.until(lambda: stand.echo.running == 1)
                client.close()
                await stand.until(lambda: not stand.server.connections)
            assert stand.echo.cancelled == 1

    go(main())


def test_a_client_that_stops_sending_has_left(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/slow?5"))
            client.writer.write_eof()
            assert await client.all() == b""
            await stand.until(lambda: stand.echo.cancelled == 1)

    go(main())


def test_a_reset_is_noticed(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/slow?5"))
            await stand.until(lambda: stand.echo.running == 1)
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.writer.transport.abort()
            await stand.until(lambda: stand.echo.cancelled == 1)

    go(main())


def test_a_slow_reader_holds_the_stream_back(go: Go) -> None:
    async def main() -> None:
        async with standing(replace(SMALL, stall_timeout=60.0)) as stand:
            client = await stand.client()
            client.reader._limit = 1000  # the client's loop stops reading soon
            client.send(get("/flood"))
            (connection,) = await stand.connections(1)
            await stand.until(lambda: connection._drained is not None)
            assert connection._transport.get_write_buffer_size() < 1 << 20
            assert connection._task is not None

    go(main())


@pytest.mark.parametrize("path", ["/flood", "/big?50000000"])
def test_a_stalled_reader_is_cut_off(go: Go, path: str) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.reader._limit = 1000
            client.send(get(path))
            await stand.until(lambda: bool(stand.echo.requests))
            await stand.until(lambda: not stand.server.connections)

    go(main())


def test_a_reader_that_asks_and_does_not_read_is_not_served_without_end(go: Go) -> None:
    async def main() -> None:
        async with standing(replace(SMALL, stall_timeout=60.0)) as stand:
            client = await stand.client()
            client.reader._limit = 1000
            for _ in range(3000):
                client.send(get("/big?10000"))
            (connection,) = await stand.connections(1)
            await stand.until(lambda: connection._paused and not connection._transport.is_reading())
            assert connection._transport.get_write_buffer_size() < 1 << 20
            assert len(connection._reader.ready) < 200
            assert len(stand.echo.requests) < 3000

    go(main())


SLOW = {
    "nothing": (b"", b""),
    "part of a head": (b"GET / HTTP/1.1\r\nHo", b"HTTP/1.1 408"),
    "part of a body": (get("/", "Content-Length: 100", method="POST") + b"a", b"HTTP/1.1 408"),
    "idle": (get("/"), b"HTTP/1.1 200"),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_senders(go: Go, name: str) -> None:
    data, expected = SLOW[name]

    async def main() -> None:
        async with standing() as stand:
            start = asyncio.get_running_loop().time()
            answer = await stand.ask(data)
            assert answer.startswith(expected)
            least = 0.4 if name == "idle" else 0.2
            assert least <= asyncio.get_running_loop().time() - start < least + 2

    go(main())


def test_slow_loris_is_not_helped_by_dripping(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            for data in (
                b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 1000,
                get("/", "Content-Length: 9000") + b"a" * 1000,
            ):
                client = await stand.client()
                reading = asyncio.ensure_future(client.all())
                for i in range(0, len(data), 2):
                    if reading.done():
                        break
                    client.send(data[i : i + 2])
                    await asyncio.sleep(0.005)
                assert (await reading).startswith(b"HTTP/1.1 408")

    go(main())


def test_a_slow_body_at_a_fair_rate_is_read(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/", "Content-Length: 1000", method="POST"))
            for _ in range(20):
                client.send(b"a" * 50)
                await asyncio.sleep(0.025)
            assert (await client.answer())[0] == 200

    go(main())


def test_a_large_body_is_refused_and_not_held(go: Go) -> None:
    async def main() -> None:
        async with standing(replace(SMALL, linger=5.0)) as stand:
            for head in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
                client = await stand.client()
                client.send(get("/", head, method="POST"))
                piece = b"a" * 65536
                if "chunked" in head:
                    piece = b"%x\r\n%b\r\n" % (len(piece), piece)
                for _ in range(200):  # 13 MB: none of it may reset the connection, or be kept
                    client.send(piece)
                    await client.writer.drain()
                assert stand.server.bodies.held == 0
                status, answered, body = await client.answer()
                assert status == 413
                assert b"application/problem+json" in answered
                assert b"connection: close" in answered
                assert b"100000 bytes" in body

    go(main())


def test_connections_are_limited(go: Go) -> None:
    async def main() -> None:
        async with standing(replace(SMALL, connections=2, idle_timeout=60.0, head_timeout=60.0)) as stand:
            first, second = await stand.client(), await stand.client()
            third = await stand.ask(b"")
            assert third.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1\r\n" in third
            for client in (first, second):
                client.send(get("/"))
                assert (await client.answer())[0] == 200
            first.close()
            await stand.until(lambda: len(stand.server.connections) == 1)
            again = await stand.client()
            again.send(get("/"))
            assert (await again.answer())[0] == 200

    go(main())


def test_stop_lets_what_is_in_flight_end(go: Go) -> None:
    async def main() -> None:
        async with standing(replace(SMALL, idle_timeout=60.0, head_timeout=60.0)) as stand:
            idle, busy, begun = [await stand.client() for _ in range(3)]
            idle.send(get("/"))
            await idle.answer()
            busy.send(get("/slow?0.1") + get("/never"))
            begun.send(b"GET /begun HTTP/1.1\r\n")
            connections = await stand.connections(3)
            await stand.until(lambda: stand.echo.running == 1 and any(c._reader.phase == HEAD for c in connections))
            stopping = asyncio.ensure_future(stand.server.stop(5.0))
            assert await idle.all() == b""
            begun.send(b"Host: a\r\n\r\n")
            for client, path in ((begun, b"/begun"), (busy, b"slow")):
                answer = await client.all()
                assert b"connection: close\r\n" in answer
                assert answer.rstrip().endswith(path)
            await asyncio.wait_for(stopping, 5.0)
            with pytest.raises(OSError, match=r"refused|failed"):
                await stand.client()
            assert stand.echo.cancelled == 0

    go(main())


def test_stop_cuts_off_the_rest(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            client = await stand.client()
            client.send(get("/slow?60"))
            await stand.until(lambda: stand.echo.running == 1)
            await asyncio.wait_for(stand.server.stop(0.05), 20.0)
            await stand.until(lambda: stand.echo.cancelled == 1)
            assert await client.all() == b""

    go(main())


def test_unix_socket(go: Go, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(path)

    async def main() -> None:
        async with standing(host="", unix_path=path) as stand:
            assert stand.server.port == 0
            client = Client(*await asyncio.open_unix_connection(path))
            stand.clients.append(client)
            client.send(get("/a"))
            assert (await client.answer())[2] == b"GET /a "

    go(main())
    assert not os.path.exists(path)


def test_half_open_connections_are_probed(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            await stand.client()
            await stand.until(lambda: len(stand.server.connections) == 1)
            (connection,) = stand.server.connections
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    go(main())


def test_requests_leave_no_cycles(go: Go) -> None:
    async def main() -> None:
        async with standing() as stand:
            requests = get("/a") + get("/slow?0") + get("/stream", CLOSE)
            await stand.ask(requests)
            with garbage() as found:
                await stand.ask(requests)
                await stand.until(lambda: not stand.server.connections)
                stand.echo.requests.clear()
            assert not found

    go(main())


def test_connections_that_wait_are_accepted_many_a_turn(go: Go) -> None:
    """A loop that is busy turns slowly: whoever connects must not wait for a turn of their own."""

    async def main() -> None:
        async with standing() as stand:
            socks = [socket.create_connection(("127.0.0.1", stand.server.port)) for _ in range(96)]  # the kernel's backlog
            turns = 0
            while len(stand.server.connections) < 96:
                await asyncio.sleep(0)
                turns += 1
                assert turns < 48
            for sock in socks:
                sock.close()

    go(main())


@pytest.mark.skipif(unread._INFO is None, reason="only Linux tells who has gone")
@pytest.mark.parametrize("behind", [False, True])
def test_who_has_gone_before_being_accepted_is_left_out_where_the_server_is_behind(
    go: Go, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    monkeypatch.setattr(unread, "_BEHIND", 0 if behind else 1 << 31)

    async def main() -> None:
        async with standing() as stand:
            with socket.create_connection(("127.0.0.1", stand.server.port)) as sock:
                sock.sendall(get())
                sock.shutdown(socket.SHUT_WR)  # all of this before the loop has a turn
                sock.setblocking(False)
                said = await asyncio.get_running_loop().sock_recv(sock, 100) if not behind else b""
                await stand.until(lambda: stand.server.left + len(stand.echo.requests) == 1)
            assert stand.server.left == behind
            assert said.startswith(b"HTTP/1.1 200") != behind

    go(main())


class Told:
    """A connection of which the kernel tells this much. A handshake that is repeated can be had on a full machine alone."""

    def __init__(self, state: int, received: int, lain: int, repeats: int) -> None:
        self.info = bytearray(136)
        self.info[0] = state
        for at, size, value in ((52, 4, lain), (100, 4, repeats), (128, 8, received)):
            self.info[at : at + size] = value.to_bytes(size, sys.byteorder)

    def get_extra_info(self, name: str) -> Told:
        return self

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return bytes(self.info[:size])


ESTABLISHED, CLOSED, CLOSE_WAIT = 1, 7, 8


@pytest.mark.skipif(unread._INFO is None, reason="only Linux tells this")
@pytest.mark.parametrize(
    ("told", "waited"),
    [
        (Told(ESTABLISHED, 100, 7, 0), 0.007),
        (Told(ESTABLISHED, 0, 7000, 0), 0.0),  # has not asked yet
        (Told(ESTABLISHED, 100, 7, 1), 1.007),
        (Told(ESTABLISHED, 100, 7, 2), 1.007),  # after 3 s, or on a network that loses some after 1 s
        (Told(ESTABLISHED, 100, 0, 5), 7.0),
        (Told(CLOSE_WAIT, 100, 7, 0), 0.0),  # asked and ended its side, just now
        (Told(CLOSE_WAIT, 100, 50, 0), None),
        (Told(CLOSE_WAIT, 100, 0, 1), None),
        (Told(CLOSED, 100, 0, 0), None),
    ],
)
def test_how_long_a_client_has_waited_at_least(told: Any, waited: float | None) -> None:
    assert unread.unread(told) == (None if waited is None else pytest.approx(waited))


@pytest.mark.skipif(unread._INFO is None, reason="only Linux tells how long")
def test_what_lay_unread_is_dated_from_when_it_came(go: Go) -> None:
    """The loop is held up while three clients come: one that asks at once, one that has not asked yet, and one for which
    it is too late by then."""

    async def main() -> None:
        async with standing() as stand:
            where = ("127.0.0.1", stand.server.port)
            with socket.create_connection(where) as prompt, socket.create_connection(where) as quiet:
                prompt.sendall(get("/a") + get("/b"))
                time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be held up
                await stand.until(lambda: len(stand.echo.requests) == 2)
                quiet.sendall(get("/c"))
                await stand.until(lambda: len(stand.echo.requests) == 3)
            waited = [request.waited for request in stand.echo.requests]
            assert 0.15 < waited[0] < 10.0
            assert waited[1:] == [0.0, 0.0]

    async def hello() -> str:
        return "hello"

    def hello_from_a_thread() -> str:
        return "hello"

    async def called(body: Any) -> None:
        async with serving(ps.App(ps.service(body, name="hello"))) as server:
            entries: list[Any] = []
            server.handler.runtime.log.subscribe(entries.extend)  # type: ignore[attr-defined]
            answers = []
            for lines in ((), ("X-Penstock-Within: 0.1",)):
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    sock.sendall(get("/hello", CLOSE, *lines, method="POST", body=b"{}"))
                    time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be held up
                    sock.setblocking(False)
                    answers.append(await asyncio.get_running_loop().sock_recv(sock, 1000))
            server.handler.runtime.log.flush()  # type: ignore[attr-defined]
        assert [answer[9:12] for answer in answers] == [b"200", b"504"]
        assert entries[0].queued > 0.15
        assert entries[0].batched == 0.0

    go(main())
    go(called(hello))
    go(called(hello_from_a_thread))
