"""Remote services: real penstock servers in child processes, and servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from served import served

import penstock as ps
from penstock.core.check import check, idle
from penstock.core.fleet import EJECTED, SERVING, TRIED, UNHEALTHY
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    PenstockError,
    QueueFull,
    RemoteFailed,
    ServiceFailed,
    ShuttingDown,
    ValidationFailed,
)
from penstock.executors.remote import RemoteExecutor
from penstock.policy import Breaker, RoundRobin, Sticky

from .remote_stand import (
    closing,
    endless_body,
    endless_head,
    failing,
    garbage,
    half_closed,
    hanging,
    odd,
    ok,
    trailing,
    until,
    well,
    wrong,
)

HERE = Path(__file__).parent
CALM = Breaker(failures=1000, share=0.0)  # nobody is ejected


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    """Two real ones."""
    with ExitStack() as stack:
        yield [stack.enter_context(served("remote_app:app", cwd=HERE))[1] for _ in range(2)]


def double(x: int, plus: int = 0) -> int: ...


def number() -> int: ...


def count(n: int, fails: bool = False) -> AsyncIterator[int]: ...


def remote(target: Any, urls: Any, safe: bool = False, options: dict[str, Any] | None = None, **place: Any) -> Any:
    return ps.service(target, on=ps.Remote(urls, **place), safe=safe, **(options or {}))


@asynccontextmanager
async def running(*services: Any) -> AsyncIterator[ps.Runtime]:
    """A runtime, after which nothing is leased any more."""
    async with ps.Runtime(*services, grace=0.0) as runtime:
        yield runtime
        check(runtime.scheduler, runtime.clock())
        await until(lambda: not runtime.busy())
        idle(runtime.scheduler)


def executor(runtime: ps.Runtime, service: Any) -> RemoteExecutor:
    found = runtime.bindings[service].executor
    assert isinstance(found, RemoteExecutor)
    return found


def states(runtime: ps.Runtime, service: Any) -> list[str]:
    return [state.state for state in executor(runtime, service).states()]


async def into(got: list[Any], stream: Any) -> None:
    """Keep the items of a stream that may fail."""
    async for item in stream:
        got.append(item)


async def aenumerate(stream: Any) -> AsyncIterator[tuple[int, Any]]:
    n = 0
    async for item in stream:
        yield n, item
        n += 1


def go(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(bounded())


# Real servers


def test_calls_and_their_errors(servers: list[str]) -> None:
    def fail(kind: str) -> None: ...

    def missing() -> None: ...

    services = [remote(double, servers), remote(fail, servers), remote(missing, servers)]

    async def main() -> None:
        async with running(*services) as runtime:
            twice, failing, nothing = services
            assert await twice(4) == 8 and await twice(4, plus=1) == 9 and await twice(x=1, plus=2) == 4
            assert await asyncio.gather(*(twice(n) for n in range(200))) == [2 * n for n in range(200)]
            with pytest.raises(ValidationFailed, match=r"^Expected `int`, got `str`"):
                await twice("four")
            with pytest.raises(QueueFull, match="nothing is free") as full:
                await failing("full")
            assert full.value.retry_after == 7.0
            with pytest.raises(ServiceFailed, match="raised an error"):
                await failing("bug")
            with pytest.raises(RemoteFailed, match="nothing is at /missing"):
                await nothing()
            with pytest.raises(InvalidRequest, match="takes 2 arguments"):
                await twice(1, 2, 3)
            with pytest.raises(InvalidRequest, match="cannot be written"):
                await twice(object())
            calls = [state.calls for state in executor(runtime, twice).states()]
            assert sum(sum(each.values()) for each in calls) == 204 and all(each["ok"] > 50 for each in calls)

    go(main)


def test_the_budget_goes_along(servers: list[str]) -> None:
    def budget() -> dict[str, Any]: ...

    service = remote(budget, servers)

    async def main() -> None:
        async with running(service):
            assert await service() == {"within": None, "priority": 0, "tenant": ""}
            with ps.budget(tenant="a\r\nx-evil: 1"):
                assert (await service())["tenant"] == "a__x-evil:_1"
            with ps.budget(within=20.0, priority=3, tenant="acme"):
                told = await service()
            assert 5.0 < told["within"] < 20.5 and (told["priority"], told["tenant"]) == (3, "acme")

    go(main)


def test_who_leaves_cancels_the_call_there(servers: list[str]) -> None:
    def hang() -> None: ...

    def told() -> dict[str, int]: ...

    one = servers[:1]
    hanging, telling = remote(hang, one), remote(told, one)

    async def main() -> None:
        async with running(hanging, telling) as runtime:
            before = (await telling())["cancelled"]
            calls = [hanging().start() for _ in range(5)]
            while (await telling())["running"] < 5:
                await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            with pytest.raises(DeadlineExceeded), ps.budget(within=0.2):
                await hanging()
            while (await telling())["running"] or (await telling())["cancelled"] < before + 6:
                await asyncio.sleep(0.01)
            assert executor(runtime, hanging).states()[0].calls["left"] >= 5

    go(main)


def test_streams(servers: list[str]) -> None:
    service = remote(count, servers)

    async def main() -> None:
        async with running(service):
            assert [item async for item in service(3000)] == list(range(3000))
            assert [item async for item in service(0)] == []
            got: list[int] = []
            with pytest.raises(ServiceFailed):
                await into(got, service(5, fails=True))
            assert got == [0, 1, 2, 3, 4]
            with pytest.raises(ValidationFailed):
                await into(got, service("x"))

    go(main)


def test_a_stream_that_nobody_reads_stands_still_there_too_and_ends_with_its_reader(servers: list[str]) -> None:
    def told() -> dict[str, int]: ...

    one = servers[1:]
    counting, telling = remote(count, one, options={"buffer": 4}), remote(told, one)

    async def main() -> None:
        async with running(counting, telling) as runtime:
            stream = counting(100_000_000).__aiter__()
            for n in range(10):
                assert await anext(stream) == n
            before = -1
            while (now := (await telling())["produced"]) != before:  # until the sockets are full
                before = now
                await asyncio.sleep(0.1)
            inbox = runtime.bindings[counting].station.running
            (work,) = inbox
            assert len(work.requests[0].item.stream.items) <= 4
            for n in range(10, 2000):
                assert await anext(stream) == n
            await stream.aclose()
            await until(lambda: not inbox)
            assert await telling()

    go(main)


def test_bytes_and_arrays(servers: list[str]) -> None:
    def reverse(data: bytes) -> bytes: ...

    def scale(data: np.ndarray, by: float) -> np.ndarray: ...

    raw, packed = remote(reverse, servers), remote(reverse, servers, encoding="msgpack", options={"name": "reverse"})
    text = remote(reverse, servers, encoding="json")
    scaling = remote(scale, servers, encoding="msgpack")

    async def main() -> None:
        data = bytes(range(256)) * 5000
        for service in (raw, packed, text):
            async with running(service):
                assert await service(data) == data[::-1]
        async with running(scaling):
            values = np.arange(10_000, dtype=np.float32).reshape(100, 100)
            found = await scaling(values, 2.0)
            assert found.dtype == values.dtype and (found == 2 * values).all()

    go(main)


def test_a_batch_is_one_request(servers: list[str]) -> None:
    def doubles(xs: list[int]) -> list[int]: ...

    service = remote(doubles, servers, options={"batch": ps.Batch(max_size=8, max_wait=0.05)})

    async def main() -> None:
        async with running(service) as runtime:
            assert await asyncio.gather(*(service(n) for n in range(64))) == [2 * n for n in range(64)]
            with pytest.raises(ValidationFailed):
                await service("x")
            assert sum(state.calls["ok"] for state in executor(runtime, service).states()) <= 16

    go(main)


def test_one_that_is_killed_under_load_costs_nobody_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock")

    def told() -> dict[str, int]: ...

    with ExitStack() as stack:
        children = [stack.enter_context(served("remote_app:app", cwd=HERE)) for _ in range(3)]
        urls = [url for _, url in children]
        service = remote(double, urls, safe=True, interval=0.1, breaker=Breaker(slow=1000.0))  # some are, on a busy machine
        asking = remote(told, urls[:1])

        async def main() -> None:
            async with running(service, asking) as runtime:
                pid = (await asking())["pid"]
                done = 0

                async def caller(n: int) -> None:
                    nonlocal done
                    while done < 2000:
                        done += 1
                        assert await service(n) == 2 * n
                        if done == 500:
                            os.kill(pid, signal.SIGKILL)

                await asyncio.gather(*(caller(n) for n in range(16)))
                await until(lambda: states(runtime, service) == [UNHEALTHY, SERVING, SERVING])
                assert runtime.ready("double") and runtime.restarts == 0

        go(main)
    lines = [record.getMessage() for record in caplog.records if "double" in record.getMessage()]
    assert len([line for line in lines if "gets no work" in line]) == 1, lines


@pytest.mark.parametrize("safe", [True, False])
def test_one_that_is_not_there_costs_nobody_an_answer_safe_or_not(safe: bool) -> None:
    """Its place among the ejected is taken, and there is no budget: what was not sent is tried elsewhere all the same."""

    async def main() -> None:
        async with odd(well) as gone:
            pass
        async with odd(well) as there:
            retry = ps.Retry(attempts=1, reserve=0.0, budget=0.0) if safe else None
            service = remote(number, [gone.url, there.url], safe, options={"retry": retry}, health="", breaker=CALM)
            async with running(service) as runtime:
                assert await asyncio.gather(*(service() for _ in range(200))) == [1] * 200
                lost, answered = executor(runtime, service).states()
                assert lost.calls["failed"] >= 5 and answered.calls == {"ok": 200}

    go(main)


# Servers that misbehave


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (failing, "answered 500: oops"),
        (garbage, "not HTTP"),
        (half_closed, "broke off in the middle"),
        (wrong, "cannot be read"),
        (endless_head, "more than 64 KiB"),
        (endless_body, "more than 100000 bytes"),
    ],
)
def test_what_a_bad_server_does_is_its_failure(behaviour: Any, said: str) -> None:
    async def main() -> None:
        async with odd(behaviour) as bad:
            service = remote(number, bad.url, health="", max_answer=100_000)
            async with running(service) as runtime:
                for _ in range(3):
                    with pytest.raises(RemoteFailed, match=said) as raised:
                        await service()
                    assert bad.url in str(raised.value)
                assert executor(runtime, service).states()[0].calls == {"failed": 3}
            await until(lambda: bad.connections == 0)

    go(main)


def test_nothing_listens() -> None:
    async def main() -> None:
        async with odd(well) as gone:
            url = gone.url
        service = remote(number, url, health="")
        async with running(service):
            with pytest.raises(RemoteFailed, match="cannot be reached"):
                await service()

    go(main)


@pytest.mark.parametrize("behaviour", [failing, garbage, half_closed, wrong])
def test_calls_that_are_safe_do_not_notice_a_bad_server(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock")

    async def main() -> None:
        async with odd(behaviour) as bad, odd(well) as good:
            service = remote(number, [bad.url, good.url], safe=True, health="")
            async with running(service) as runtime:
                for _ in range(100):
                    assert await service() == 1
                assert states(runtime, service) == [EJECTED, SERVING]
                assert len(bad.requests) <= 5 and len(good.requests) >= 95
                assert runtime.bindings[service].station.retry.spent == len(bad.requests) == 5
                assert runtime.ready("number")

    go(main)
    assert len([r for r in caplog.records if "is ejected and gets no work: 5 calls in a row failed" in r.getMessage()]) == 1


def test_calls_that_are_not_safe_are_not_run_again() -> None:
    async def main() -> None:
        async with odd(failing) as bad, odd(well) as good:
            service = remote(number, [bad.url, good.url], health="", options={"route": RoundRobin()})
            async with running(service) as runtime:
                results = await asyncio.gather(*(service() for _ in range(8)), return_exceptions=True)
                assert len(bad.requests) == 4 == sum(isinstance(result, RemoteFailed) for result in results)
                assert len(good.requests) == 4 and runtime.bindings[service].station.retry is None

    go(main)


def test_one_that_hangs_is_ejected_by_the_deadlines_that_pass() -> None:
    async def main() -> None:
        async with odd(hanging) as stuck, odd(well) as good:
            service = remote(number, [stuck.url, good.url], health="", options={"route": RoundRobin()})
            async with running(service) as runtime:
                for _ in range(20):
                    try:
                        with ps.budget(within=0.1):
                            await service()
                    except DeadlineExceeded:
                        pass
                assert states(runtime, service) == [EJECTED, SERVING]
                assert executor(runtime, service).states()[0].calls["late"] == 5
                await until(
                    lambda: stuck.left == len(stuck.requests) and not stuck.connections
                )  # and each connection was closed

    go(main)


def test_one_that_is_ten_times_slower_is_ejected() -> None:
    async def slow(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        await asyncio.sleep(0.05)
        writer.write(ok())

    async def quick(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        await asyncio.sleep(0.005)
        writer.write(ok())

    async def main() -> None:
        async with odd(slow) as late, odd(quick) as one, odd(quick) as two:
            service = remote(number, [late.url, one.url, two.url], health="", breaker=Breaker(window=10))
            async with running(service) as runtime:
                while states(runtime, service) != [EJECTED, SERVING, SERVING]:
                    await asyncio.gather(*(service() for _ in range(6)))
                (state, *_) = executor(runtime, service).states()
                assert "in the median of 10 calls" in state.why and len(late.requests) < 40

    go(main)


def test_one_that_recovers_is_tried_and_serves_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock")
    broken = True

    async def moody(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        await (failing if broken else well)(odd, reader, writer, request)

    async def main() -> None:
        nonlocal broken
        async with odd(moody) as bad, odd(well) as good:
            breaker = Breaker(eject=0.05, longest=0.05)
            service = remote(number, [bad.url, good.url], safe=True, health="", breaker=breaker, slow_start=0.2)
            async with running(service) as runtime:
                seen = set()
                while len(bad.requests) < 8:  # ejected, tried, ejected again
                    assert await service() == 1
                    seen.add(states(runtime, service)[0])
                assert seen >= {EJECTED, TRIED}
                broken = False
                while states(runtime, service) != [SERVING, SERVING]:
                    assert await service() == 1
                served = len(bad.requests)
                while len(bad.requests) < served + 50:
                    assert await service() == 1
                assert executor(runtime, service).states()[0].ejections >= 2

    go(main)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "gets no work" in line]) == 1
    assert len([line for line in lines if "serves again after" in line]) == 1


def test_connections_are_bounded_and_kept() -> None:
    async def slow(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        await asyncio.sleep(0.001)
        writer.write(ok())

    async def main() -> None:
        async with odd(slow) as one, odd(slow) as two:
            service = remote(number, [one.url, two.url], connections=3, health="", breaker=CALM)
            async with running(service):
                await asyncio.gather(*(service() for _ in range(100)))
                assert one.most <= 3 and two.most <= 3
                assert one.opened + two.opened <= 6 and len(one.requests) + len(two.requests) == 100
            await until(lambda: one.connections == two.connections == 0)

    go(main)


def test_a_kept_connection_that_was_closed_is_no_failure_where_calls_are_safe() -> None:
    async def main() -> None:
        async with odd(closing) as server:
            service = remote(number, server.url, safe=True, health="", options={"retry": ps.Retry(attempts=1)})
            async with running(service) as runtime:
                assert [await service() for _ in range(6)] == [1] * 6
                assert executor(runtime, service).states()[0].calls == {"ok": 6}
                assert len(server.requests) == 11  # five of them twice
        async with odd(closing) as server:
            service = remote(number, server.url, health="")
            async with running(service):
                assert await service() == 1
                with pytest.raises(RemoteFailed, match="without an answer"):
                    await service()

    go(main)


def test_an_answer_too_many_is_not_the_next_ones() -> None:
    async def main() -> None:
        async with odd(trailing) as server:
            service = remote(number, server.url, health="")
            async with running(service):
                assert [await service() for _ in range(20)] == [1] * 20

    go(main)


def test_headers_that_go_along() -> None:
    def text(prompt: str) -> int: ...

    async def main() -> None:
        async with odd(well) as server:
            url = f"{server.url}/v1/things?a=b"
            service = remote(text, url, token="secret", headers={"X-Team": "vision"})
            async with running(service) as runtime:
                with ps.budget(within=5.0, priority=-2, tenant="acme"):
                    assert await service("hé") == 1
                call = runtime.call(service, ("x",), {}, id="call-7")
                call.trace = b"traceparent: 00-%b-%b-01\r\n" % (b"a" * 32, b"b" * 16)
                await call
            first, second = server.requests
            assert first.startswith(b"POST /v1/things?a=b HTTP/1.1\r\nhost: 127.0.0.1:")
            assert first.endswith('\r\n\r\n{"prompt":"hé"}'.encode())
            for line in (b"authorization: Bearer secret", b"x-team: vision", b"x-penstock-priority: -2"):
                assert b"\r\n" + line + b"\r\n" in first
            assert re.search(rb"x-penstock-within: (4.9|5.0)", first)
            assert b"acme" not in first  # a URL with a path may be a stranger's: who asks is told to penstock servers alone
            assert b"x-request-id: call-7\r\n" in second and b"traceparent: 00-aaaa" in second
            assert b"x-penstock" not in second

    go(main)


def test_a_foreign_stream_of_events() -> None:
    async def events(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        body = b'data: {"a": 1}\r\n\r\n: ping\r\n\r\nevent: x\r\ndata: {"a":\r\ndata: 2}\r\n\r\ndata: [DONE]\r\n\r\n'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for n in range(len(body)):
            writer.write(b"1\r\n%b\r\n" % body[n : n + 1])
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    def chat() -> AsyncIterator[dict[str, int]]: ...

    async def main() -> None:
        async with odd(events) as server, odd(well) as other:
            service, no_stream = remote(chat, server.url + "/chat"), remote(count, other.url + "/count")
            async with running(service, no_stream):
                assert [item async for item in service()] == [{"a": 1}, {"a": 2}]
                with pytest.raises(RemoteFailed, match="no stream that can be read"):
                    await into([], no_stream(1))

    go(main)


@pytest.mark.parametrize("cut", ["reset", "garbage", "long"])
def test_a_stream_that_breaks_in_the_middle_fails_after_what_came(cut: str) -> None:
    async def breaking(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"6\r\n0\n1\n2\n\r\n")
        await writer.drain()
        if cut == "garbage":
            writer.write(b"5\r\n{no}\n\r\n")
        if cut == "long":
            writer.write(b"%x\r\n%b\r\n" % (2000, b"1" * 2000))
        if cut == "reset":
            raise ConnectionResetError
        await hanging(odd, reader, writer, request)

    async def main() -> None:
        async with odd(breaking) as server:
            service = remote(count, server.url, health="", max_answer=1000)
            async with running(service) as runtime:
                got: list[int] = []
                with pytest.raises(RemoteFailed):
                    await into(got, service(9))
                assert got == [0, 1, 2]
                assert executor(runtime, service).states()[0].calls == {"failed": 1}

    go(main)


def test_health_decides_who_gets_work_and_one_that_is_not_there_does_not_keep_the_start() -> None:
    sick = True

    async def checked(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        if request.startswith(b"GET /up ") and sick:
            writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n")
        else:
            writer.write(ok())

    async def main() -> None:
        nonlocal sick
        async with odd(checked) as one, odd(hanging) as stuck:
            service = remote(number, [one.url, stuck.url], health="/up", interval=0.05, connect_timeout=0.1)
            async with running(service) as runtime:
                assert states(runtime, service) == [UNHEALTHY, UNHEALTHY] and not runtime.ready("number")
                call = service().start()
                await asyncio.sleep(0)
                assert executor(runtime, service).states()[0].why == "its health check answers 503"
                sick = False
                assert await call == 1
                assert states(runtime, service) == [SERVING, UNHEALTHY] and runtime.ready("number")
                sick = True
                await until(lambda: states(runtime, service) == [UNHEALTHY, UNHEALTHY])

    go(main)


def test_a_server_without_our_health_check_is_called_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def plain(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        if request.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        else:
            writer.write(ok())

    async def main() -> None:
        async with odd(plain) as server:
            service = remote(number, server.url)
            async with running(service) as runtime:
                assert await service() == 1 and states(runtime, service) == [SERVING]

    go(main)
    assert [record for record in caplog.records if "has nothing at /readyz/number" in record.getMessage()]


def test_sticky_keys_meet_the_same_remote() -> None:
    def ask(session: str, text: str) -> int: ...

    async def main() -> None:
        async with odd(well) as one, odd(well) as two, odd(well) as three:
            urls = [one.url, two.url, three.url]
            options = {"route": Sticky(key=lambda session, text: session)}
            service = remote(ask, urls, health="", options=options, breaker=CALM)
            async with running(service):
                for n in range(90):
                    await service(f"session {n % 9}", "hello")
            homes = [{r.rpartition(b"session ")[2][:1] for r in each.requests} for each in (one, two, three)]
            assert sum(map(len, homes)) == 9 and len([home for home in homes if home]) > 1

    go(main)


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_servers_that_do_all_of_this(seed: int) -> None:
    """Every call ends once, and nothing is leased afterwards; `running` looks at the laws."""
    random = Random(seed)
    bad = [failing, garbage, half_closed, wrong, closing, trailing, hanging, endless_head]

    async def moody(odd: Any, reader: Any, writer: Any, request: bytes) -> None:
        behaviour = well if random.random() < 0.7 else random.choice(bad)
        for _ in range(random.choice((0, 0, 1, 5))):
            await asyncio.sleep(0)
        if b"application/x-ndjson" in request and behaviour is well:
            lines = b"".join(b"%d\n" % n for n in range(random.choice((0, 3, 300))))
            writer.write(ok(lines, b"content-type: application/x-ndjson\r\n"))
        else:
            await behaviour(odd, reader, writer, request)

    async def main() -> None:
        ends: Counter[str] = Counter()
        async with odd(moody) as one, odd(moody) as two, odd(moody) as three:
            urls, breaker = [one.url, two.url, three.url], Breaker(failures=3, eject=0.01, longest=0.05)
            place = {"connections": 4, "health": "", "breaker": breaker, "slow_start": 0.05}
            unary, stream = remote(number, urls, safe=True, **place), remote(count, urls, options={"buffer": 4}, **place)

            async def caller() -> None:
                try:
                    with ps.budget(within=random.choice((0.02, 0.2, 0.2))):
                        if random.random() < 0.5:
                            assert await unary() == 1
                        else:
                            async for n, item in aenumerate(stream(9)):
                                assert n == item
                                if random.random() < 0.01:
                                    break
                    ends["ok"] += 1
                except PenstockError as error:
                    ends[type(error).__name__] += 1
                except asyncio.CancelledError:
                    ends["left"] += 1

            async with running(unary, stream) as runtime:
                for _ in range(20):
                    callers = [asyncio.create_task(caller()) for _ in range(20)]
                    await asyncio.sleep(random.choice((0.0, 0.01)))
                    for each in callers[:3]:
                        each.cancel()
                    await asyncio.gather(*callers)
                    check(runtime.scheduler, runtime.clock())
                while executor(runtime, unary).flows or executor(runtime, stream).flows:
                    await asyncio.sleep(0.001)  # a stream that was left in the middle is closed when its generator is
                assert sum(ends.values()) == 400 and ends["ok"] > 100 and len(ends) >= 4, ends

    go(main)


def test_over_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run([*made, *subject], check=True, capture_output=True)
    ours, theirs = ssl.create_default_context(cafile=str(certificate)), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)

    async def main() -> None:
        async with odd(well, tls=theirs) as server:
            url = server.url.replace("http://127.0.0.1", "https://localhost")
            trusting, doubting = remote(number, url, health="", tls=ours), remote(number, url, health="")
            async with running(trusting):
                assert [await trusting() for _ in range(3)] == [1, 1, 1] and server.opened == 1
            async with running(doubting):
                with pytest.raises(RemoteFailed, match="certificate verify failed"):
                    await doubting()

    go(main)


def test_stopping_ends_what_runs() -> None:
    async def main() -> None:
        async with odd(hanging) as stuck:
            service = remote(number, stuck.url, health="")
            async with ps.Runtime(service, grace=0.05) as runtime:
                call = service().start()
                await until(lambda: stuck.requests)
            assert not runtime.busy()
            with pytest.raises(ShuttingDown):
                await call
            await until(lambda: stuck.left == 1)

    go(main)


# Declarations


def test_declarations_that_cannot_be() -> None:
    class Model:
        def __call__(self, x: int) -> int:
            return x

    def many(*xs: int) -> int: ...

    for urls in ([], "localhost:8000", "ftp://host", "http://user:pw@host", "http://ho st", ["http://a", "http://a"]):
        with pytest.raises(ConfigError):
            ps.Remote(urls)
    for options in (
        {"connections": 0},
        {"health": "up"},
        {"interval": 0.0},
        {"headers": {"a": "b\r\nc: d"}},
        {"encoding": "xml"},
    ):
        with pytest.raises(ConfigError):
            ps.Remote("http://a", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="declared by a function"):
        ps.service(Model, on=ps.Remote("http://a"))
    with pytest.raises(ConfigError, match="no names on the wire"):
        go(lambda: _start(ps.service(many, on=ps.Remote("http://a"))))
    with pytest.raises(ConfigError, match="one bytes parameter"):
        go(lambda: _start(ps.service(double, on=ps.Remote("http://a", encoding="raw"))))
    with pytest.raises(ConfigError, match="chooses between replicas"):
        ps.service(double, route=RoundRobin())
    assert "secret" not in repr(ps.Remote("http://a", token="secret"))


async def _start(service: Any) -> None:
    async with ps.Runtime(service):
        pass
