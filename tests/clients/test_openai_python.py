"""The official `openai` package for Python, unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from speaking import SIZE, vector

from .conftest import Served

openai = pytest.importorskip("openai")
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 🦜!"}]


def client(server: Served, **options: Any) -> Any:
    return openai.OpenAI(base_url=server.base, **{"api_key": server.key, "max_retries": 0, **options})


def test_chats(server: Served) -> None:
    answer = client(server).chat.completions.create(model="parrot", messages=HELLO, temperature=0, seed=3)
    assert answer.choices[0].message.content == "Grüße, 🦜!" and answer.choices[0].finish_reason == "stop"
    assert answer.model == "parrot" and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    answer = client(server).chat.completions.create(
        model="parrot", messages=HELLO, n=2, max_completion_tokens=3, logprobs=True, top_logprobs=2
    )
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert len(answer.choices[1].logprobs.content) == 3 and len(answer.choices[1].logprobs.content[0].top_logprobs) == 2
    answer = client(server).chat.completions.create(model="parrot", messages=HELLO, stop=[", "])
    assert answer.choices[0].message.content == "Grüße" and answer.choices[0].finish_reason == "stop"


def test_streams(server: Served) -> None:
    text, usage, ends = "", None, []
    with client(server).chat.completions.create(
        model="parrot", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                ends += [choice.finish_reason] if choice.finish_reason else []
    assert (text, ends) == ("Grüße, 🦜!", ["stop"]) and usage.completion_tokens == len("Grüße, 🦜!".encode()) + 1


def test_the_stream_helper(server: Served) -> None:
    with client(server).chat.completions.stream(model="parrot", messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "Grüße, 🦜!"


def test_async_and_many_at_once(server: Served) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=server.base, api_key=server.key, max_retries=0) as there:

            async def one(n: int) -> str:
                messages = [{"role": "user", "content": f"number {n}"}]
                stream = await there.chat.completions.create(model="parrot", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            assert await asyncio.gather(*(one(n) for n in range(40))) == [f"number {n}" for n in range(40)]
            stream = await there.chat.completions.create(model="parrot", messages=HELLO, stream=True)
            async for _ in stream:
                break
            await stream.close()
            assert (await there.models.list()).data[0].id == "parrot"

    asyncio.run(main())


def test_completions_and_responses(server: Served) -> None:
    there = client(server)
    answer = there.completions.create(model="parrot", prompt=["a\nsay this", "b\nand that"], max_tokens=20)
    assert [choice.text for choice in answer.choices] == ["say this", "and that"]
    text = "".join(chunk.choices[0].text for chunk in there.completions.create(model="parrot", prompt="x\nyes", stream=True))
    assert text == "yes"
    assert there.responses.create(model="parrot", input="hello").output_text == "hello"
    events = list(there.responses.create(model="parrot", input="hello", stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"


def test_embeddings(server: Served) -> None:
    there = client(server)
    found = there.embeddings.create(model="vectors", input=["a", "b"])  # the client asks for base64
    assert [each.embedding == pytest.approx(vector(text)) for each, text in zip(found.data, "ab", strict=True)] == [True, True]
    found = there.embeddings.create(model="vectors", input=[list(b"ab")], encoding_format="float", dimensions=SIZE)
    assert found.data[0].embedding == pytest.approx(vector("ab")) and found.usage.prompt_tokens == 2
    assert len(there.embeddings.create(model="vectors", input="a", dimensions=3).data[0].embedding) == 3


def test_models(server: Served) -> None:
    assert [model.id for model in client(server).models.list()] == ["parrot", "vectors", "scores"]
    assert client(server).models.retrieve("vectors").id == "vectors"
    with pytest.raises(openai.NotFoundError):
        client(server).models.retrieve("nobody")


def test_errors_are_its_classes(server: Served) -> None:
    there = client(server)
    with pytest.raises(openai.NotFoundError, match="no model is named 'parot'; did you mean 'parrot'") as missing:
        there.chat.completions.create(model="parot", messages=HELLO)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    for key in ("sk-wrong", "pst_aaaa_bbbb"):
        with pytest.raises(openai.AuthenticationError):
            client(server, api_key=key).chat.completions.create(model="parrot", messages=HELLO)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            there.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "x" * 300}], stream=stream)
        assert long.value.code == "context_length_exceeded" and "200" in long.value.message
    for wrong in ({"temperature": 9}, {"n": 0}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        with pytest.raises(openai.BadRequestError) as bad:
            there.chat.completions.create(model="parrot", messages=HELLO, **wrong)
        assert (bad.value.param or "").partition("[")[0] in wrong
    with pytest.raises(openai.BadRequestError):
        there.embeddings.create(model="vectors", input=[])
    with pytest.raises(openai.NotFoundError):
        there.chat.completions.create(model="vectors", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        there.moderations.create(input="x")


def test_a_rate_limit_says_when_to_come_again(server: Served) -> None:
    there = client(server, api_key=server.limited["python"])
    there.chat.completions.create(model="parrot", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as refused:
        there.chat.completions.create(model="parrot", messages=HELLO)
    assert float(refused.value.response.headers["retry-after"]) > 1


def test_a_stream_that_breaks_raises(server: Served) -> None:
    stream = client(server).chat.completions.create(
        model="parrot", messages=[{"role": "user", "content": "break"}], stream=True
    )
    with pytest.raises(openai.APIError):
        list(stream)


def test_a_raw_answer_has_the_headers(server: Served) -> None:
    raw = client(server).chat.completions.with_raw_response.create(model="parrot", messages=HELLO)
    assert raw.parse().choices[0].message.content == "Grüße, 🦜!"
    assert raw.headers["x-request-id"] and raw.parse()._request_id == raw.headers["x-request-id"]
