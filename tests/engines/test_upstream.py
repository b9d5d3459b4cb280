"""Models on other servers: foreign ones and ours, over real sockets, also through our own endpoints."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from foreign_openai import apart, foreign, vector
from served import served

import penstock as ps
from penstock.engines.upstream import chat, embed, rerank
from penstock.errors import ConfigError, InvalidRequest, NotFound, RemoteFailed
from penstock.http.serve import serving

TESTS = Path(__file__).parent.parent
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def there() -> Iterator[str]:
    """A penstock server in a process of its own."""
    with served("speaking_app:app", cwd=TESTS) as (_, url):
        yield url


def go(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(bounded())


@asynccontextmanager
async def ours(*models: Any) -> AsyncIterator[str]:
    """A penstock server of these models; its URL."""
    async with serving(ps.App(models=models, log=False)) as server:
        yield f"http://127.0.0.1:{server.port}"


async def whole(model: Any, path: str, **body: Any) -> Any:
    (answer,) = [item async for item in model.relay(path, {"model": model.remote_name, **body})]
    return answer


async def said(http: httpx.AsyncClient, **body: Any) -> tuple[int, list[Any]]:
    """The status, and what came: one object, or the data of each event."""
    body = {"messages": [{"role": "user", "content": "hello"}], **body}
    async with http.stream("POST", CHAT, json=body) as answer:
        text = (await answer.aread()).decode()
    if not body.get("stream") or answer.status_code != 200:
        return answer.status_code, [json.loads(text)]
    rows = [row[6:] for row in text.split("\n") if row.startswith("data: ")]
    return answer.status_code, [row if row == "[DONE]" else json.loads(row) for row in rows]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# Names


def test_the_name_is_the_servers_one_unless_it_has_several() -> None:
    async def main() -> None:
        async with foreign() as several:
            with pytest.raises(ConfigError, match="has the models 'tiny', 'other'; say which"):
                await asyncio.to_thread(chat, several.url)
            with pytest.raises(ConfigError, match="refuses /v1/models: not found"):
                await asyncio.to_thread(chat, several.url + "/elsewhere")
            model = chat(several.url, "tiny", name="mine/own")  # asks nothing, so it may be said on a loop
            assert (model.name, model.remote_name, model.relay.name) == ("mine/own", "tiny", "chat-own")
            model = chat(f"{several.url}#other:8b")
            assert (model.name, model.remote_name, model.relay.options.on.urls) == ("other:8b", "other:8b", (several.url,))
            assert [request[0] for request in several.requests] == ["GET /v1/models", "GET /v1/elsewhere/models"]

    go(main)
    with served("speaking_app:chat", cwd=TESTS) as (_, url):
        model = chat(url)  # /v1 need not be said
        assert (model.name, model.remote_name) == ("parrot", "parrot") and model.relay.options.on.urls == (f"{url}/v1",)


def test_a_server_that_is_down_at_the_start_is_asked_later(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with caplog.at_level(logging.WARNING, "penstock"):
        model, vectors, scores = chat(url), embed(url, name="late-vectors"), rerank(url, name="late-scores")
    assert (model.name, model.remote_name, vectors.dimensions) == (f"127.0.0.1:{port}", "", 0)
    assert caplog.text.count("cannot be asked yet what it serves") == 3

    async def main() -> None:
        async with ours(model, vectors, scores) as here, httpx.AsyncClient(base_url=here, timeout=20) as http:
            status, (told,) = await said(http, model=model.name)
            assert status == 502 and "cannot be reached" in told["error"]["message"]
            with served("speaking_app:chat", "--port", str(port), cwd=TESTS):
                status, (told,) = await said(http, model=model.name)
                assert status == 200 and told["choices"][0]["message"]["content"] == "hello" and told["model"] == model.name
                status, rows = await said(http, model=model.name, stream=True)
                assert status == 200 and rows[-1] == "[DONE]"
            with served("speaking_app:vectors", "--port", str(port), cwd=TESTS):
                told = (await http.post("/v1/embeddings", json={"model": "late-vectors", "input": "a"})).json()
                assert told["usage"]["prompt_tokens"] == 1 and len(told["data"][0]["embedding"]) == 8

    go(main)


# Chats


def test_chats_pass_through_two_servers_of_ours(there: str) -> None:
    async def main() -> None:
        model = chat(there, "parrot", name="there")
        async with ours(model) as here, httpx.AsyncClient(base_url=here, timeout=20) as http:
            status, (told,) = await said(http, model="there", seed=1)
            assert status == 200 and told["choices"][0]["message"]["content"] == "hello" and told["model"] == "there"
            status, rows = await said(http, model="there", stream=True, stream_options={"include_usage": True})
            text = "".join(row["choices"][0]["delta"].get("content") or "" for row in rows[:-1] if row["choices"])
            assert status == 200 and text == "hello" and rows[-1] == "[DONE]" and rows[-2]["usage"]["completion_tokens"] == 6
            status, (told,) = await said(http, model="there", max_tokens=1000)
            assert status == 400 and "tokens" in told["error"]["message"]
            assert told["error"]["code"] == "context_length_exceeded"
            body = {"model": "there", "prompt": "one\ntwo"}
            assert (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"] == "two"
            body = {"model": "there", "input": "hi"}
            assert (await http.post("/v1/responses", json=body)).json()["output"][0]["content"][0]["text"] == "hi"
            text = (await http.post("/v1/responses", json={**body, "stream": True})).text
            rows = [json.loads(row[6:]) for row in text.split("\n") if row.startswith("data: ")]
            assert rows[-1]["type"] == "response.completed" and rows[-1]["response"]["model"] == "there"
            status, rows = await said(http, model="there", stream=True, messages=[{"role": "user", "content": "break"}])
            assert status == 200 and "error" in rows[-1]

    go(main)


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("too long", 400, "too many tokens: 9000 > 2048"),
        ("no key", 502, "does not accept the key"),
        ("not there", 404, "not found"),
        ("limited", 429, "Rate limit reached"),
        ("overloaded", 503, "its queue is full"),
        ("broken", 502, "CUDA error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_there_are_errors_here(model: str, status: int, message: str, stream: bool) -> None:
    async def main() -> None:
        async with foreign() as server:
            relayed = chat(server.url, model, name="m")
            async with ours(relayed) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
                body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
                answer = await http.post(CHAT, json=body)
                assert answer.status_code == status and message in answer.json()["error"]["message"]
                later = {"limited": "7", "overloaded": "3"}.get(model)
                assert answer.headers.get("retry-after") == later

    go(main)


@pytest.mark.parametrize("model", ["reset", "half", "silent", "garbage", "no HTTP", "error inside"])
def test_what_breaks_off_there_is_never_done_here(model: str) -> None:
    async def main() -> None:
        async with (
            foreign() as server,
            ours(chat(server.url, model, name="m")) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as http,
        ):
            status, rows = await said(http, model="m", stream=True)
            assert "[DONE]" not in rows and "error" in rows[-1]
            if model == "reset" and status != 200:
                assert status == 502  # nothing had come
            else:
                text = "".join(row["choices"][0]["delta"].get("content", "") for row in rows[:-1])
                assert status == 200 and "0 1 2 ".startswith(text)

    go(main)


def test_a_server_that_is_killed_ends_every_chat_with_an_error_and_the_next_ones_go_elsewhere() -> None:
    async def main() -> None:
        with apart() as (process, killed):
            async with foreign() as other:
                model = chat([killed, other.url], "slow", name="m")
                async with ours(model) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
                    chats = [asyncio.create_task(said(http, model="m", stream=True, max_tokens=300)) for _ in range(8)]
                    while sum(path.startswith("POST") for path, _, _ in other.requests) < 4:
                        await asyncio.sleep(0.01)
                    process.kill()
                    ends = [(await each)[1][-1] for each in chats]
                    done = ends.count("[DONE]")
                    assert done == 4 and all("error" in end for end in ends if end != "[DONE]")
                    for _ in range(8):
                        assert (await said(http, model="m", max_tokens=1))[0] == 200

    go(main)


# Vectors and scores


@pytest.mark.parametrize("remote_name", ["tiny", "floats"])
def test_vectors_of_many_calls_share_requests(remote_name: str) -> None:
    async def main() -> None:
        async with foreign() as server:
            model = await asyncio.to_thread(embed, server.url, remote_name, token="sk-1")
            known = remote_name == "tiny"
            assert (model.name, model.dimensions, model.max_tokens) == (remote_name, 3, 2048 if known else 8192)
            del server.requests[:]
            texts: list[Any] = [f"{'x' * n} {n}" for n in range(100)] + [[1, 2, 3], [4]]
            async with ps.Runtime(ps.App(models=[model])):
                found = await asyncio.gather(*(model.embed(text) for text in texts))
            for text, each in zip(texts, found, strict=True):
                assert each.vector.dtype == np.float32 and each.vector.tolist() == vector(text) and each.cut == 0
            assert sum(each.tokens for each in found) == sum(map(len, texts))
            assert [each.tokens for each in found[:100]] == [len(text) for text in texts[:100]]
            inputs = [body["input"] for _, _, body in server.requests]
            assert len(inputs) < 60 and sorted(str(text) for some in inputs for text in some) == sorted(map(str, texts))
            assert all(len({type(text) for text in some}) == 1 for some in inputs)
            assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer sk-1"}

    go(main)


def test_a_text_that_is_refused_fails_alone_and_a_bad_answer_all() -> None:
    async def main() -> None:
        async with foreign() as server:
            model = await asyncio.to_thread(embed, server.url, "tiny")
            short = await asyncio.to_thread(embed, server.url, "short", dimensions=3)
            async with ps.Runtime(ps.App(models=[model, short])):
                calls = [model.embed(text) for text in ("a", "bad", "b", "bad", "c")]
                ends = await asyncio.gather(*calls, return_exceptions=True)
                assert [isinstance(end, InvalidRequest) for end in ends] == [False, True, False, True, False]
                assert "is no text" in str(ends[1])
                with pytest.raises(RemoteFailed, match="asked about 1 texts and answered about 0"):
                    await short.embed("a")

    go(main)


def test_scores_are_asked_by_query() -> None:
    async def main() -> None:
        async with foreign() as server:
            model = await asyncio.to_thread(rerank, server.url, "tiny")
            pairs = [(f"query {n % 3}", "d" * n) for n in range(1, 61)]
            del server.requests[:]
            async with ps.Runtime(ps.App(models=[model])):
                found = await asyncio.gather(*(model.score(*pair) for pair in pairs))
            assert [each.value for each in found] == [n / 100 for n in range(1, 61)]
            assert [each.tokens for each in found] == [7 + n for n in range(1, 61)]
            assert len(server.requests) < 40
            for _, _, body in server.requests:
                assert all((body["query"], document) in pairs for document in body["documents"])

    go(main)


def test_vectors_and_scores_pass_through_two_servers_of_ours(there: str) -> None:
    vectors, scores = embed(there, "vectors"), rerank(there, "scores")
    assert (vectors.dimensions, vectors.max_tokens, scores.max_tokens) == (8, 50, 50)

    async def main() -> None:
        async with ours(vectors, scores) as here, httpx.AsyncClient(timeout=20) as http:
            for path, body in (
                ("/v1/embeddings", {"model": "vectors", "input": ["a", "b"], "encoding_format": "base64"}),
                ("/v1/embeddings", {"model": "vectors", "input": [[97, 98]], "encoding_format": "base64"}),
                ("/v1/rerank", {"model": "scores", "query": "a b", "documents": ["a", "b c", "a b"]}),
                ("/v1/score", {"model": "scores", "text_1": "a b", "text_2": ["a", "x"]}),
            ):
                told, same = [(await http.post(base + path, json=body)).json() for base in (here, there)]
                for key in ("data", "results", "usage"):
                    assert told.get(key) == same.get(key), (path, key)
            body = {"model": "vectors", "input": ["a", "b" * 60]}
            (cut,) = (await http.post(here + "/v1/embeddings", json=body)).json()["truncated"]
            assert (cut["index"], cut["cut"]) == (1, 10)  # what is cut off there is told here
            answer = await http.post(here + "/v1/embeddings", json={"model": "vectors", "input": ["a", "break"]})
            assert answer.status_code == 502

    go(main)


def test_a_model_that_is_not_there_is_said_at_the_start() -> None:
    async def main() -> None:
        async with foreign() as server:
            with pytest.raises(ConfigError, match='refuses /v1/embeddings: model "not there" not found'):
                await asyncio.to_thread(embed, server.url, "not there")
            model = chat(server.url, "not there")
            async with ps.Runtime(ps.App(models=[model])):
                with pytest.raises(NotFound, match="not found"):
                    await whole(model, CHAT)

    go(main)
