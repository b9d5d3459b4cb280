"""`Remote(encoding="openai")` against a server that is not ours, over real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random
from typing import Any

import pytest
from foreign_openai import Foreign, apart, foreign

import penstock as ps
from penstock.core.check import check, idle
from penstock.errors import (
    ConfigError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PenstockError,
    RateLimited,
    RemoteFailed,
    ValidationFailed,
)
from penstock.executors.remote import RemoteExecutor
from penstock.executors.remote_relay import seconds

from .remote_stand import until

CHAT = "/v1/chat/completions"


def relay(path: str, body: dict[str, Any] | None) -> AsyncIterator[dict[str, Any]]: ...


def relaying(urls: Any, options: dict[str, Any] | None = None, **place: Any) -> Any:
    return ps.service(relay, on=ps.Remote(urls, encoding="openai", **place), **(options or {}))


def go(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(bounded())


async def asked(service: Any, model: str, stream: bool = True, path: str = CHAT, **body: Any) -> list[Any]:
    return [item async for item in service(path, {"model": model, "stream": stream, **body})]


async def into(got: list[Any], stream: Any) -> None:
    """Keep the items of a stream that may fail."""
    async for item in stream:
        got.append(item)


def words(events: list[Any]) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])


def with_server(test: Any, **place: Any) -> None:
    """Run `test(service, server, runtime)`; nothing is leased afterwards."""

    async def main() -> None:
        async with foreign() as server:
            service = relaying(server.url, **place)
            async with ps.Runtime(service, grace=0.0) as runtime:
                await test(service, server, runtime)
                check(runtime.scheduler, runtime.clock())
                await until(lambda: not runtime.busy())
                idle(runtime.scheduler)

    go(main)


def calls(runtime: ps.Runtime, service: Any) -> dict[str, int]:
    found = runtime.bindings[service].executor
    assert isinstance(found, RemoteExecutor)
    return found.states()[0].calls


def test_whole_answers_streams_and_lists() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        (whole,) = await asked(service, "tiny", stream=False, max_tokens=2)
        assert whole["choices"][0]["message"]["content"] == "0 1 " and whole["usage"]["total_tokens"] == 8
        events = await asked(service, "tiny", max_tokens=200, stream_options={"include_usage": True})
        assert words(events) == "".join(f"{n} " for n in range(200)) and events[-1]["usage"]["total_tokens"] == 8
        assert len(events) == 203
        (models,) = [item async for item in service("/v1/models", None)]
        assert [model["id"] for model in models["data"]] == ["tiny", "other"]
        what = [request[0] for request in server.requests]
        assert what == [f"POST {CHAT}", f"POST {CHAT}", "GET /v1/models"]
        assert server.requests[0][2] == {"model": "tiny", "stream": False, "max_tokens": 2}
        assert calls(runtime, service) == {"ok": 3}

    with_server(test)


def test_the_key_and_headers_go_along_and_a_url_has_its_own_path_and_query() -> None:
    async def main() -> None:
        async with foreign() as server:
            base = server.url.removesuffix("/v1") + "/deployments/d/?api-version=1"
            service = relaying(base, token="sk-1", headers={"OpenAI-Organization": "org"})
            async with ps.Runtime(service):
                with pytest.raises(NotFound):
                    await asked(service, "tiny", path="/v1/embeddings")
                with pytest.raises(InvalidRequest, match="one that begins with /"):
                    await asked(service, "tiny", path="/v1/x HTTP/1.1\r\nevil: 1")
        ((what, headers, _),) = server.requests
        assert what == "POST /deployments/d/embeddings?api-version=1"
        assert headers["authorization"] == "Bearer sk-1" and headers["openai-organization"] == "org"
        assert headers["content-type"] == "application/json" and "x-penstock-tenant" not in headers

    go(main)


@pytest.mark.parametrize(
    ("model", "kind", "said", "later"),
    [
        ("too long", InvalidRequest, "too many tokens: 9000 > 2048", None),
        ("no key", RemoteFailed, "answered 401: it does not accept the key", None),
        ("not there", NotFound, 'model "not there" not found', None),
        ("odd", ValidationFailed, "field required", None),
        ("limited", RateLimited, "Rate limit reached", 7.0),
        ("limited ms", RateLimited, "soon", 0.25),
        ("limited reset", RateLimited, "tokens per minute", 62.5),
        ("overloaded", Overloaded, "its queue is full", 3.0),
        ("busy", RemoteFailed, "answered 503: server busy", 3.0),
        ("broken", RemoteFailed, "answered 500: CUDA error", None),
        ("proxy", RemoteFailed, "answered 502: <html>", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_our_classes(model: str, kind: type[PenstockError], said: str, later: float | None, stream: bool) -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        with pytest.raises(kind, match=said) as found:
            await asked(service, model, stream)
        assert type(found.value) is kind and found.value.retry_after == later
        assert "sk-secret" not in str(found.value)
        if model == "too long":
            assert vars(found.value)["code"] == "context_length_exceeded" and vars(found.value)["param"] == "messages"
        blamed = kind is RemoteFailed
        assert calls(runtime, service) == ({"failed": 1} if blamed else {"refused": 1})
        assert words(await asked(service, "tiny")) == "0 1 2 " and server.opened == 1

    with_server(test)


def test_a_date_to_come_again() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        with pytest.raises(RateLimited) as found:
            await asked(service, "limited date")
        assert found.value.retry_after is not None and 40 < found.value.retry_after <= 100

    with_server(test)


def test_durations() -> None:
    told = {"7": 7, "0.5": 0.5, "20ms": 0.02, "6m0s": 360, "1h2m3.5s": 3723.5, "1d": 86400, " 3s ": 3}
    assert {text: seconds(text) for text in told} == told
    assert [seconds(text) for text in ("", "ms", "soon", "-1", "1 s", "1e9", "nan", "3sx")] == [None] * 8


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("reset", "broke off|closed|reset"),
        ("half", "broke off in the middle of its answer"),
        ("silent", "without a finish_reason"),
        ("half of them", "without a finish_reason"),
        ("garbage", "cannot be read"),
        ("no HTTP", "is not HTTP"),
        ("error inside", "answered 500: EngineCore died"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error_after_what_came(model: str, said: str) -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        got: list[Any] = []
        with pytest.raises(RemoteFailed, match=said):
            await into(got, service(CHAT, {"model": model, "stream": True, "n": 2}))
        assert model == "reset" or words([e for e in got if e["choices"][0]["index"] == 1]) == "0 1 2 "
        assert calls(runtime, service) == {"failed": 1}
        assert words(await asked(service, "tiny")) == "0 1 2 "

    with_server(test)


def test_an_error_inside_of_a_stream_may_be_the_callers() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        with pytest.raises(InvalidRequest, match=r"^too long$"):
            await asked(service, "refused inside")
        assert calls(runtime, service) == {"refused": 1}

    with_server(test)


def test_a_stream_without_done_is_complete_when_every_choice_is() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        assert len(await asked(service, "no done", n=3)) == 3 + 9 + 3
        events = await asked(service, "tiny", path="/v1/responses")
        assert [event["type"] for event in events][-1] == "response.completed"
        with pytest.raises(RemoteFailed, match="broke off"):
            await asked(service, "cut", path="/v1/responses")

    with_server(test)


@pytest.mark.parametrize(
    ("model", "stream", "said"),
    [
        ("no stream", True, "answered application/json where events were asked for"),
        ("garbage", False, "cannot be read"),
        ("no object", False, "Expected `object`"),
        ("error in 200", False, "answered 503: no capacity"),
    ],
)
def test_answers_that_are_of_no_use(model: str, stream: bool, said: str) -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        with pytest.raises(RemoteFailed, match=said):
            await asked(service, model, stream)

    with_server(test)


def test_an_answer_is_bounded() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        with pytest.raises(RemoteFailed, match="more than 4000 bytes"):
            await asked(service, "tiny", stream=False, max_tokens=4000)
        assert len(await asked(service, "tiny", max_tokens=4000)) == 4002  # of a stream each item is

    with_server(test, max_answer=4000)


def test_connections_are_kept_after_streams_too_and_one_that_goes_on_after_its_end_is_not() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        for _ in range(5):
            assert words(await asked(service, "tiny")) == "0 1 2 "
            await asyncio.sleep(0)  # what follows [DONE] is read in a later turn, if it comes in a later packet
        assert server.opened <= 2
        before = server.opened
        assert words(await asked(service, "endless")) == "0 1 2 "
        assert words(await asked(service, "tiny")) == "0 1 2 "
        assert server.opened > before
        await until(lambda: server.open == server.opened - before)

    with_server(test)


def test_a_stream_is_complete_before_its_answer_and_the_connection_is_kept_all_the_same() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        assert words(await asked(service, "late end")) == "0 1 2 "
        found = runtime.bindings[service].executor
        assert isinstance(found, RemoteExecutor)
        (connection,) = found.servers[0].connections
        assert not found.servers[0].idle
        server.may_end.set()
        await until(lambda: found.servers[0].idle == [connection])
        assert words(await asked(service, "tiny")) == "0 1 2 " and server.opened == 1

    with_server(test)


def test_who_leaves_closes_the_connection_and_one_who_does_not_read_holds_the_server_up() -> None:
    async def test(service: Any, server: Foreign, runtime: ps.Runtime) -> None:
        stream = service(CHAT, {"model": "hang", "stream": True}).__aiter__()
        assert [await anext(stream) for _ in range(4)]
        await stream.aclose()
        call = asyncio.create_task(asked(service, "never", stream=False))
        await until(lambda: len(server.requests) == 2)
        call.cancel()
        await until(lambda: server.left == 2)
        assert calls(runtime, service) == {"left": 2}

        stream = service(CHAT, {"model": "tiny", "stream": True, "max_tokens": 10**9}).__aiter__()
        for _ in range(10):
            await anext(stream)
        (work,) = runtime.bindings[service].station.running
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(work.requests[0].item.stream.items) <= service.options.buffer
        await stream.aclose()

    with_server(test)


def test_one_that_is_killed_in_the_middle_fails_its_streams_and_no_others() -> None:
    async def main() -> None:
        with apart() as (process, killed):
            async with foreign() as other:
                service = relaying([killed, other.url], breaker=ps.policy.Breaker(failures=1000, share=0.0))
                async with ps.Runtime(service, grace=0.0) as runtime:
                    ends: list[str] = []
                    begun = asyncio.Event()

                    async def one() -> None:
                        got = []
                        try:
                            async for item in service(CHAT, {"model": "slow", "stream": True, "max_tokens": 400}):
                                got.append(item)
                                if len(got) == 3:
                                    begun.set()
                            assert len(got) == 402
                            ends.append("whole")
                        except RemoteFailed as error:
                            assert killed in str(error) and 0 < len(got) < 402
                            ends.append("failed")

                    async with asyncio.TaskGroup() as group:
                        for _ in range(16):
                            group.create_task(one())
                        await begun.wait()
                        await until(lambda: len(runtime.bindings[service].station.running) == 16)
                        running = [work.replica // 32 for work in runtime.bindings[service].station.running]
                        process.kill()
                    assert ends.count("failed") == running.count(0) and len(ends) == 16
                    assert 0 < ends.count("failed") < 16
                    assert await asyncio.gather(*(asked(service, "tiny", stream=False) for _ in range(40)))  # all elsewhere
                    idle(runtime.scheduler)

    go(main)


def test_several_servers_share_the_calls() -> None:
    async def main() -> None:
        async with foreign() as one, foreign() as two:
            service = relaying([one.url, two.url], connections=4)
            async with ps.Runtime(service):
                await asyncio.gather(*(asked(service, "tiny") for _ in range(60)))
            assert len(one.requests) + len(two.requests) == 60
            assert min(len(one.requests), len(two.requests)) > 10 and max(one.opened, two.opened) <= 8

    go(main)


def test_declarations_that_cannot_be() -> None:
    def lonely(path: str) -> AsyncIterator[dict[str, Any]]: ...

    def unary(path: str, body: dict[str, Any]) -> dict[str, Any]: ...

    with pytest.raises(ConfigError, match="URLs with a path"):
        relaying("http://localhost:8000")

    async def main(target: Any) -> None:
        async with ps.Runtime(ps.service(target, on=ps.Remote("http://localhost:1/v1", encoding="openai"))):
            pass

    for target in (lonely, unary):
        with pytest.raises(ConfigError, match="relay"):
            asyncio.run(main(target))


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_streams_loses_no_event_and_ends_none_in_silence(seed: int) -> None:
    """Servers that do all of the above, callers that leave at any moment; what is whole is whole, the rest is an error."""
    random = Random(seed)
    bad = ("reset", "half", "silent", "garbage", "no HTTP", "error inside", "broken", "limited", "no stream", "endless", "hang")
    ends: Counter[str] = Counter()

    async def one(service: Any, number: int) -> None:
        model = random.choice(("tiny", "slow", "no done", random.choice(bad)))
        count, leaves = random.randrange(1, 40), random.choice((10**9, random.randrange(40)))
        got = ""
        try:
            async with aclosing(service(CHAT, {"model": model, "stream": True, "max_tokens": count}).__aiter__()) as events:
                async for event in events:
                    got += words([event])
                    if random.random() < 0.05:
                        await asyncio.sleep(0.001)  # a slow reader
                    if len(got.split()) >= min(leaves, count if model == "hang" else 10**9):
                        ends["left"] += 1
                        break
                else:
                    assert model in ("tiny", "slow", "no done", "endless") and len(got.split()) == count, (model, got)
                    ends["whole"] += 1
        except PenstockError:
            assert model in bad
            ends["failed"] += 1
        assert got.split() == [str(n) for n in range(len(got.split()))], got

    async def main() -> None:
        async with foreign() as a, foreign() as b:
            service = relaying(
                [a.url, b.url], {"buffer": 3}, connections=3, breaker=ps.policy.Breaker(failures=1000, share=0.0)
            )
            async with ps.Runtime(service, grace=0.0) as runtime:
                async with asyncio.TaskGroup() as group:
                    for number in range(120):
                        group.create_task(one(service, number))
                check(runtime.scheduler, runtime.clock())
                await until(lambda: not runtime.busy())
                idle(runtime.scheduler)
            assert sum(ends.values()) == 120 and min(ends["whole"], ends["failed"], ends["left"]) > 5, ends
            await until(lambda: a.open == b.open == 0)

    go(main)
