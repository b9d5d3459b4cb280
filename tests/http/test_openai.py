"""The model endpoints over real sockets, with models whose answers can be foretold."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from speaking import LONGEST, SIZE, embedder, parrot, scorer, vector

import penstock as ps
from penstock.http.serve import serving
from penstock.models import Embedding, EmbeddingModel
from penstock.runtime.tokens import Tenant, changed, issue


@asynccontextmanager
async def client(*models: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = ps.App(models=models or (parrot(), embedder(), scorer()), log=False, **options)
    async with serving(app) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as http:
        yield http


def run(test: Callable[[httpx.AsyncClient], Awaitable[None]], *models: Any, **options: Any) -> None:
    async def main() -> None:
        async with client(*models, **options) as http:
            await test(http)

    asyncio.run(main())


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "parrot", "messages": [{"role": "user", "content": text}], **more}


async def events(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    async with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), await answer.aread()
        text = (await answer.aread()).decode()
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


def test_a_chat_is_answered() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/chat/completions", json=ask("Grüße 🦜"))
        told = answer.json()
        assert answer.status_code == 200, told
        assert told["object"] == "chat.completion" and told["model"] == "parrot"
        choice = told["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": "Grüße 🦜", "refusal": None}
        assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
        written = len("Grüße 🦜".encode()) + 1
        assert told["usage"]["completion_tokens"] == written
        assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + written
        assert answer.headers["x-request-id"] in told["id"] and "server-timing" in answer.headers

    run(test)


@pytest.mark.parametrize("usage", [False, True])
def test_a_chat_is_streamed(usage: bool) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        lines = await events(http, "/v1/chat/completions", ask("Grüße 🦜", stream=True, **options))
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        if usage:
            last = chunks.pop()
            assert last["choices"] == [] and last["usage"]["completion_tokens"] == len("Grüße 🦜".encode()) + 1
            assert all(chunk["usage"] is None for chunk in chunks)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "Grüße 🦜"
        assert not any("\ufffd" in delta.get("content", "") for delta in deltas), "half a character was sent"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop" and deltas[-1] == {}

    run(test)


def test_length_and_stop_strings_end_an_answer() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        for given, text, finish in [
            ({"max_tokens": 3}, "one", "length"),
            ({"max_completion_tokens": 5, "max_tokens": 1}, "one t", "length"),
            ({"stop": "two"}, "one ", "stop"),
            ({"stop": ["three", "wo t"]}, "one t", "stop"),
            ({"stop": ["nowhere"]}, "one two three", "stop"),
            ({"max_tokens": 14, "ignore_eos": True}, "one two three", "length"),
        ]:
            body = ask("one two three", **given)
            told = (await http.post("/v1/chat/completions", json=body)).json()
            assert (told["choices"][0]["message"]["content"], told["choices"][0]["finish_reason"]) == (text, finish), given
            lines = await events(http, "/v1/chat/completions", {**body, "stream": True})
            chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
            assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == text
            assert chunks[-1]["finish_reason"] == finish

    run(test)


def test_several_answers_and_log_probabilities() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.post("/v1/chat/completions", json=ask("é", n=3, logprobs=True, top_logprobs=2))).json()
        assert "choices" in told, told
        assert [c["message"]["content"] for c in told["choices"]] == ["é"] * 3
        content = told["choices"][1]["logprobs"]["content"]
        assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
        assert content[0]["logprob"] == -0.5 and len(content[0]["top_logprobs"]) == 2
        lines = await events(http, "/v1/chat/completions", ask("abc", n=3, stream=True))
        said = ["", "", ""]
        for line in lines[:-1]:
            choice = json.loads(line)["choices"][0]
            said[choice["index"]] += choice["delta"].get("content", "")
        assert said == ["abc"] * 3
        log = (await http.get("/metrics")).text
        assert 'penstock_calls_total{service="/v1/chat/completions",outcome="ok"} 2' in log
        assert 'penstock_calls_total{service="chat-parrot",outcome="ok"} 6' in log

    run(test)


def test_completions() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        for prompt in ("abc", list(b"abc"), ["abc"], [list(b"abc")]):
            told = (await http.post("/v1/completions", json={"model": "parrot", "prompt": prompt})).json()
            assert [(c["index"], c["text"], c["finish_reason"]) for c in told["choices"]] == [(0, "abc", "stop")]
        body = {"model": "parrot", "prompt": ["ab", "cd"], "n": 2, "echo": True, "max_tokens": 1}
        told = (await http.post("/v1/completions", json=body)).json()
        assert [c["text"] for c in told["choices"]] == ["aba", "aba", "cdc", "cdc"]
        lines = await events(http, "/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
        said = [""] * 4
        for line in lines[:-2]:
            choice = json.loads(line)["choices"][0]
            said[choice["index"]] += choice["text"]
        assert said == ["aba", "aba", "cdc", "cdc"] and json.loads(lines[-2])["usage"]["completion_tokens"] == 4
        told = (await http.post("/v1/completions", json={"prompt": "a" * 40, "logprobs": 1})).json()
        assert told["choices"][0]["text"] == "a" * 16 and told["choices"][0]["logprobs"]["text_offset"] == list(range(16))

    run(test)


def test_responses() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.post("/v1/responses", json={"model": "parrot", "input": "hello", "instructions": "be kind"})).json()
        assert told["status"] == "completed" and told["output"][0]["content"][0]["text"] == "hello"
        said = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
        told = (await http.post("/v1/responses", json={"model": "parrot", "input": said, "max_output_tokens": 2})).json()
        assert told["status"] == "incomplete" and told["output"][0]["content"][0]["text"] == "he"
        lines = await events(http, "/v1/responses", {"model": "parrot", "input": "hello", "stream": True})
        found = [json.loads(line) for line in lines]
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        assert "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta") == "hello"
        assert found[-1]["type"] == "response.completed" and found[-1]["response"]["usage"]["output_tokens"] == 6

    run(test)


def test_embeddings() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.post("/v1/embeddings", json={"model": "vectors", "input": ["a", "b"]})).json()
        assert [d["index"] for d in told["data"]] == [0, 1] and told["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
        assert told["data"][1]["embedding"] == pytest.approx(vector("b")) and "truncated" not in told
        body = {"model": "vectors", "input": [list(b"ab"), list(b"c")], "encoding_format": "base64"}
        told = (await http.post("/v1/embeddings", json=body)).json()
        found = struct.unpack(f"<{SIZE}f", base64.b64decode(told["data"][0]["embedding"]))
        assert found == pytest.approx(vector("ab"))
        told = (await http.post("/v1/embeddings", json={"input": "a", "dimensions": 3})).json()
        short = told["data"][0]["embedding"]
        assert len(short) == 3 and sum(x * x for x in short) == pytest.approx(1.0)
        told = (await http.post("/v1/embeddings", json={"input": ["a", "b" * 60]})).json()
        assert told["truncated"] == [{"index": 1, "tokens": LONGEST, "cut": 10}]

    run(test)


def test_rerank_in_three_shapes_and_score() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        query, documents = "red fish", ["one blue fish", "a red fish", "nothing"]
        told = (await http.post("/v1/rerank", json={"model": "scores", "query": query, "documents": documents})).json()
        assert [(r["index"], r["relevance_score"]) for r in told["results"]] == [(1, 1.0), (0, 0.5), (2, 0.0)]
        assert told["results"][0]["document"] == {"text": "a red fish"} and told["usage"]["total_tokens"] == 30
        body = {"model": "scores", "query": query, "documents": documents, "top_n": 1, "max_tokens_per_doc": 5}
        told = (await http.post("/v2/rerank", json=body)).json()
        assert len(told["results"]) == 1 and "document" not in told["results"][0]
        assert told["meta"]["api_version"]["version"] == "2" and told["truncated"][0] == {"index": 0, "tokens": 5, "cut": 8}
        body = {"query": query, "texts": documents, "return_text": True, "raw_scores": True}
        told = (await http.post("/rerank", json=body)).json()
        assert told[0] == {"index": 1, "score": 10.0, "text": "a red fish"}
        told = (await http.post("/rerank", json={"query": "x", "texts": ["y", "y" * (LONGEST + 1)]})).json()
        assert told == [{"index": 0, "score": 0.0}, {"index": 1, "score": 0.0, "cut": 1}]
        told = (await http.post("/rerank", json={"query": "x", "documents": [{"text": "x"}], "return_documents": False})).json()
        assert told["results"] == [{"index": 0, "relevance_score": 1.0}]
        for given in ({"text_1": query, "text_2": documents}, {"queries": [query] * 3, "documents": documents}):
            told = (await http.post("/v1/score", json=given)).json()
            assert [d["score"] for d in told["data"]] == [0.5, 1.0, 0.0]

    run(test)


def test_models_and_tokens() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.get("/v1/models")).json()
        assert [m["id"] for m in told["data"]] == ["parrot", "vectors", "scores"]
        assert (await http.get("/v1/models/parrot")).json()["max_model_len"] == 200
        assert (await http.get("/v1/models/carrot")).status_code == 404
        assert (await http.post("/tokenize", json={"model": "parrot", "prompt": "ab"})).json()["tokens"] == [257, 97, 98]
        told = (await http.post("/tokenize", json=ask("a"))).json()
        assert told["count"] == len("user: a\n") + 1
        assert (await http.post("/detokenize", json={"tokens": [97, 98]})).json() == {"prompt": "ab"}

    run(test)


CHAT, EMBED, RERANK = "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"
BAD: list[tuple[str, Any, int, str, str]] = [
    (CHAT, ask("x", model="carrot"), 404, "model", "did you mean 'parrot'"),
    (CHAT, {**ask("x"), "model": "vectors"}, 404, "model", "embeds"),
    (CHAT, {"model": "parrot"}, 400, "messages", "messages"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing"),
    (CHAT, ask("x", logit_bias={"5": 200}), 400, "logit_bias", "100"),
    (CHAT, {"model": "parrot", "messages": []}, 400, "messages", "messages"),
    (CHAT, ask("x", temprature=1), 400, "temprature", "temprature"),
    (CHAT, ask("x", temperature=3), 400, "temperature", "temperature"),
    (CHAT, ask("x", n=1000), 400, "n", "$.n"),
    (CHAT, ask("x", stop=[""]), 400, "stop", "empty"),
    (CHAT, ask("x", tools=[{"type": "function"}]), 400, "tools", "calls no tools"),
    (CHAT, ask("x", response_format={"type": "json_object"}), 400, "response_format", "response_format"),
    (CHAT, ask("x" * 300), 400, "messages", "context of 200 tokens; the prompt has 308"),
    (CHAT, ask("x", max_tokens=500), 400, "messages", "500 tokens"),
    (CHAT, ask("refuse"), 400, "", "not answered"),
    (CHAT, ask("x", chat_template_kwargs={"refuse": True}), 400, "", "no such conversation"),
    (CHAT, ask("x", logit_bias={"a": 1}), 400, "logit_bias", "token ids"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 400, "messages[0].content[0]", "video"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "role"),
    ("/v1/completions", {"prompt": []}, 400, "prompt", "1 to"),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix", "suffix"),
    ("/v1/completions", {"prompt": [[-1]]}, 400, "prompt", "prompt[0]"),
    ("/v1/responses", {"input": "x", "previous_response_id": "r"}, 400, "previous_response_id", "stored"),
    (
        "/v1/responses",
        {"instructions": "x", "input": [{"role": "user", "content": [{"type": "refusal"}]}]},
        400,
        "input[0].content[0]",
        "refusal",
    ),
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_object"}}}, 400, "text.format", "text.format"),
    (EMBED, {"input": []}, 400, "input", "1 to 2048"),
    (EMBED, {"input": ""}, 400, "input", "empty"),
    (EMBED, {"input": ["a"] * 3000}, 400, "input", "3000"),
    (EMBED, {"input": "a", "dimensions": 99}, 400, "dimensions", "99"),
    (EMBED, {"input": "a" * 60, "truncate": False}, 400, "input", "10 tokens longer"),
    (EMBED, {"input": "break"}, 500, "", "log has it"),
    (RERANK, {"query": "a", "documents": ["b"] * 10_000}, 400, "documents", "10000"),
    (RERANK, {"query": "a", "documents": []}, 400, "documents", "at least one"),
    (RERANK, {"query": "a", "documents": [{"title": "b"}]}, 400, "documents[0]", "text"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, "text_2", "2 texts"),
    ("/tokenize", {}, 400, "prompt", "prompt or messages"),
    ("/detokenize", {"tokens": [1, 1 << 40]}, 400, "tokens[1]", "int"),
    ("/rerank", {"query": "a", "texts": ["b"], "truncation_direction": "Left"}, 400, "truncation_direction", "enum"),
]


def test_what_is_wrong_is_said_in_openais_form() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        for path, body, status, param, part in BAD:
            answer = await http.post(path, json=body)
            error = answer.json()["error"]
            assert answer.status_code == status, (body, error)
            assert (error["param"] or "") == param and part in error["message"], (body, error)
            assert set(error) == {"message", "type", "param", "code"} and answer.headers["x-request-id"]
        for content, part in [
            (b"{", "decoded"),
            (b"", "empty"),
            (b'{"model": "\xff"}', "UTF-8"),
            (b'{"metadata": ' + b'{"a":' * 9000, "nested"),
        ]:
            answer = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400 and part in answer.json()["error"]["message"], answer.text
        answer = await http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
        assert answer.status_code == 415
        answer = await http.post(CHAT, content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"})
        assert answer.status_code == 415 and answer.headers["accept-encoding"] == "identity"
        assert "Content-Encoding" in answer.json()["error"]["message"]
        answer = await http.get(CHAT)
        assert answer.status_code == 405 and answer.headers["allow"] == "POST, OPTIONS"

    run(test)


def test_a_stream_that_breaks_says_so_and_is_never_done() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        lines = await events(http, CHAT, ask("break", stream=True))
        assert "error" in json.loads(lines[-1]) and "[DONE]" not in lines
        answer = await http.post(CHAT, json=ask("refuse", stream=True))
        assert answer.status_code == 400 and answer.json()["error"]["message"] == "this is not answered"

    run(test)


def test_an_empty_answer_has_its_form() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.post(CHAT, json=ask(""))).json()
        assert told["choices"][0]["message"]["content"] == "" and told["usage"]["completion_tokens"] == 1
        lines = await events(http, CHAT, ask("", stream=True))
        assert [json.loads(line)["choices"][0]["finish_reason"] for line in lines[:-1]] == [None, "stop"]

    run(test)


def test_who_leaves_frees_the_slot() -> None:
    model = parrot(context=1 << 30, slots=1)

    async def test(http: httpx.AsyncClient) -> None:
        for _ in range(3):
            async with http.stream("POST", CHAT, json=ask("x", ignore_eos=True, max_tokens=100_000, stream=True)) as answer:
                async for _ in answer.aiter_lines():
                    break
        answer = await http.post(CHAT, json=ask("still here"))
        assert answer.json()["choices"][0]["message"]["content"] == "still here"
        gauges = (await http.get("/metrics")).text
        assert 'penstock_in_flight{service="chat-parrot"} 0' in gauges

    run(test, model)


def test_answers_without_chance_are_kept_where_that_is_asked_for() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        async def count() -> int:
            found = (await http.get("/metrics")).text
            return int(found.partition('calls_total{service="chat-parrot",outcome="ok"} ')[2].partition("\n")[0] or 0)

        for made, given in [
            (1, {"temperature": 0}),
            (1, {"temperature": 0, "stop": "nowhere"}),  # the same tokens
            (1, {"temperature": 0, "stream": True}),
            (2, {"temperature": 0, "max_tokens": 3}),
            (3, {"temperature": 0.5}),
            (4, {"temperature": 0.5}),
            (4, {"temperature": 0}),
        ]:
            answer = await http.post(CHAT, json=ask("one two", **given))
            said = "one" if "max_tokens" in given else "one two"
            if given.get("stream"):
                lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
                assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines) == said
            else:
                assert answer.json()["choices"][0]["message"]["content"] == said and answer.headers["x-request-id"]
            assert await count() == made, given
        assert 'penstock_cached_calls_total{service="/v1/chat/completions",how="hit"} 3' in (await http.get("/metrics")).text

    run(test, parrot(cache_bytes=1 << 20))


def test_the_endpoints_are_described() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        told = (await http.get("/openapi.json")).json()
        assert {CHAT, "/v1/completions", "/v1/responses", EMBED, RERANK, "/v2/rerank", "/v1/score", "/tokenize"} <= set(
            told["paths"]
        )
        chat = told["paths"][CHAT]["post"]
        name = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert "messages" in told["components"]["schemas"][name]["properties"]
        assert "text/event-stream" in chat["responses"]["200"]["content"]

    run(test)


def test_quotas_of_requests_and_tokens(tmp_path: Path) -> None:
    with changed(tmp_path / "tokens") as book:
        key = issue(book, "a", "a")
        book.tenants["a"] = Tenant(per_second=100, burst=50, tokens_per_minute=200)

    async def test(http: httpx.AsyncClient) -> None:
        http.headers["authorization"] = f"Bearer {key}"
        answer = await http.post(CHAT, json=ask("one"))
        used = answer.json()["usage"]["total_tokens"]
        assert answer.headers["x-ratelimit-limit-tokens"] == "200" and answer.headers["x-ratelimit-limit-requests"] == "50"
        assert 200 - used <= int(answer.headers["x-ratelimit-remaining-tokens"]) + used <= 200 + 1
        assert (
            int(answer.headers["x-ratelimit-remaining-requests"]) >= 45
            and answer.headers["x-ratelimit-reset-tokens"][-1] == "s"
        )
        answer = await http.post(EMBED, json={"input": ["a" * 40] * 3})
        assert answer.status_code == 200 and "x-ratelimit-remaining-tokens" in answer.headers
        answer = await http.post(CHAT, json=ask("x" * 150))
        error = answer.json()["error"]
        assert answer.status_code == 429 and error["code"] == "rate_limit_exceeded" and "tokens a minute" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        answer = await http.post(CHAT, json=ask("refuse"))
        assert answer.status_code == 400, "what was refused was not charged"

    run(test, tokens=tmp_path / "tokens")


def test_a_quota_of_requests_that_is_used_up_says_so_as_openai_does(tmp_path: Path) -> None:
    with changed(tmp_path / "tokens") as book:
        key = issue(book, "a", "a")
        book.tenants["a"] = Tenant(per_second=0.05, burst=2)

    async def test(http: httpx.AsyncClient) -> None:
        http.headers["authorization"] = f"Bearer {key}"
        left = [(await http.post(CHAT, json=ask("one"))).headers["x-ratelimit-remaining-requests"] for _ in range(2)]
        assert left == ["1", "0"]
        for answer in [await http.post(CHAT, json=ask("one")), await http.get("/v1/models/parrot")]:
            error = answer.json()["error"]
            assert answer.status_code == 429 and error["type"] == "rate_limit_error", error
            assert error["message"] == "tenant 'a' may make 3 calls a minute"
            assert answer.headers["x-ratelimit-limit-requests"] == "2" and int(answer.headers["retry-after"]) in (19, 20)
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert 38 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 40

    run(test, tokens=tmp_path / "tokens")


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/models/none", "/v1/modelsparrot", "/v1/audio/speech"])
def test_what_is_not_there_is_said_in_openais_words(path: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        answer = await http.post(path, json={}) if "models" not in path else await http.get(path)
        error = answer.json()["error"]
        assert answer.status_code == 404 and error["type"] == "invalid_request_error" and answer.headers["x-request-id"]
        assert path in error["message"] or error["code"] == "model_not_found"

    run(test)


def test_a_model_of_the_hub_is_found_by_its_last_part_in_the_list_too() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        for name in ("org/bird", "bird", "org%2Fbird"):
            answer = await http.get(f"/v1/models/{name}")
            assert answer.status_code == 200 and answer.json()["id"] == "org/bird", answer.text

    run(test, replace(parrot(), name="org/bird"))


def test_a_template_is_given_values_of_any_name() -> None:
    async def test(http: httpx.AsyncClient) -> None:
        answer = await http.post(CHAT, json=ask("x", chat_template_kwargs={"messages": [], "self": 1}))
        assert answer.status_code == 200, answer.text

    run(test)


def test_images_come_as_data_and_nothing_is_fetched() -> None:
    def asked(url: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"model": "parrot", "messages": [{"role": "user", "content": parts}]}

    async def test(http: httpx.AsyncClient) -> None:
        for url, part in [
            ("https://example.com/a.png", "fetches no URLs"),
            ("file:///etc/passwd", "fetches no URLs"),
            ("data:image/png;base64,%%%", "broken"),
            ("data:image/png,abc", "base64"),
            ("data:text/html;base64,YQ==", "image"),
        ]:
            answer = await http.post(CHAT, json=asked(url))
            error = answer.json()["error"]
            assert answer.status_code == 400 and part in error["message"], error
            assert error["param"] == "messages[0].content[1].image_url"
        answer = await http.post(CHAT, json=asked("data:image/png;base64,YQ=="))
        assert answer.status_code == 200, answer.text

    run(test, replace(parrot(), features=frozenset({"images"})))


def test_a_text_for_a_purpose_has_the_models_prompt() -> None:
    def embed(texts: list[str], prompts: list[str] | str = "") -> list[Embedding]:
        return [Embedding([float(len(prompt)), 1.0], 1) for prompt in prompts]

    service = ps.service(embed, name="embed-purposes", batch=ps.Batch())
    model = EmbeddingModel(name="purposes", embed=service, dimensions=2, max_tokens=9, prompts={"query": "query: "})

    async def test(http: httpx.AsyncClient) -> None:
        for purpose, length in [("query", 5), ("search_query", 5), ("search_document", 0), (None, 0)]:
            told = (await http.post(EMBED, json={"input": "a", **({"input_type": purpose} if purpose else {})})).json()
            assert told["data"][0]["embedding"] == [length, 1.0], purpose

    run(test, model)
