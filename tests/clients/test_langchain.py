"""LangChain's classes for OpenAI's servers, unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from speaking import vector

from .conftest import Served

langchain = pytest.importorskip("langchain_openai")


def chat(server: Served, **options: Any) -> Any:
    return langchain.ChatOpenAI(base_url=server.base, api_key=server.key, model="parrot", max_retries=0, **options)


def test_chats(server: Served) -> None:
    answer = chat(server, temperature=0).invoke([("system", "Be brief."), ("user", "hello there")])
    assert answer.content == "hello there" and answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] == len("hello there") + 1
    assert chat(server, max_tokens=4).invoke("hello there").content == "hell"
    assert [answer.content for answer in chat(server).batch([f"number {n}" for n in range(8)])] == [
        f"number {n}" for n in range(8)
    ]


def test_streams(server: Served) -> None:
    chunks = list(chat(server, stream_usage=True).stream("hello there"))
    assert "".join(chunk.content for chunk in chunks) == "hello there"
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == len("hello there") + 1

    async def main() -> str:
        return "".join([chunk.content async for chunk in chat(server).astream("in a loop")])

    assert asyncio.run(main()) == "in a loop"


def test_what_the_model_cannot_do_is_refused(server: Served) -> None:
    with pytest.raises(Exception, match="tools"):
        chat(server).bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke("x")


def test_embeddings(server: Served) -> None:
    there = langchain.OpenAIEmbeddings(
        base_url=server.base, api_key=server.key, model="vectors", check_embedding_ctx_length=False
    )
    assert there.embed_query("a") == pytest.approx(vector("a"))
    assert [row == pytest.approx(vector(t)) for row, t in zip(there.embed_documents(["a", "b"]), "ab", strict=True)] == [
        True
    ] * 2
