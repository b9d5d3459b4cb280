"""A real model behind the real endpoints, asked by the real client: what crosses all layers at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import tiny_models

import penstock as ps
from penstock.engines.writer import chat
from penstock.http.serve import serving

openai = pytest.importorskip("openai")

TALK = [{"role": "user", "content": "What is a lease, and 日本 😀?"}]
SEEDED = {"model": "tiny", "messages": TALK, "max_tokens": 40, "seed": 5, "temperature": 1.2}


@asynccontextmanager
async def client_of(**options: Any) -> AsyncIterator[Any]:
    model = chat(tiny_models.qwen3(), name="tiny", on=ps.Thread(), **options)
    async with (
        serving(ps.App(models=[model], log=False), "127.0.0.1", 0) as server,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


def ask(what: Callable[[Any], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with client_of(**options) as client:
            await what(client)

    asyncio.run(main())


async def streamed(client: Any, **asked: Any) -> tuple[str, str, Any]:
    """Text, why it ended, and the usage."""
    text, finish, usage = "", "", None
    async for chunk in await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


def test_streams_are_the_whole_answer_and_a_seed_repeats_it() -> None:
    async def what(client: Any) -> None:
        whole = await client.chat.completions.create(**SEEDED)
        found = await asyncio.gather(*(streamed(client, **SEEDED) for _ in range(5)), streamed(client, **{**SEEDED, "seed": 6}))
        for text, finish, usage in found[:5]:
            assert text == whole.choices[0].message.content
            assert finish == whole.choices[0].finish_reason
            assert usage == whole.usage
        assert found[5][0] != found[0][0]

    ask(what, slots=4)


def test_stop_strings_and_logprobs() -> None:
    async def what(client: Any) -> None:
        whole = await client.chat.completions.create(**SEEDED, logprobs=True, top_logprobs=3)
        text = whole.choices[0].message.content
        logs = whole.choices[0].logprobs.content
        assert b"".join(bytes(each.bytes) for each in logs).decode("utf-8", "replace").startswith(text[:5])
        assert all(len(each.top_logprobs) == 3 for each in logs)
        stop = text[6:9]
        stopped = await client.chat.completions.create(**SEEDED, stop=[stop])
        assert stopped.choices[0].message.content == text[: text.index(stop)]
        assert stopped.choices[0].finish_reason == "stop"

    ask(what)


def test_what_cannot_be_is_a_400_and_the_model_goes_on() -> None:
    async def what(client: Any) -> None:
        for wrong in (
            {"max_tokens": 10_000},
            {"logit_bias": {"99999": 1}},
            {"messages": [{"role": "user", "content": "x " * 900}]},
        ):
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**{**SEEDED, **wrong})
        assert (await client.chat.completions.create(**SEEDED)).choices[0].message.content

    ask(what)


def test_a_format_is_kept() -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}, "n": {"type": "boolean"}}, "required": ["a", "n"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}

    async def what(client: Any) -> None:
        found = await asyncio.gather(*(streamed(client, **{**SEEDED, "seed": n}, response_format=form) for n in range(4)))
        for text, finish, _ in found:
            answer = json.loads(text)
            assert answer["a"] in ("b", "c")
            assert answer["n"] in (True, False)
            assert finish == "stop"

    ask(what)


def test_who_leaves_frees_the_slot() -> None:
    async def what(client: Any) -> None:
        for _ in range(4):
            stream = await client.completions.create(
                model="tiny", prompt="on and on", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(aiter(stream))
            await stream.close()
        text, _, _ = await streamed(client, **SEEDED)
        assert text

    ask(what, slots=1)
