"""What runs of models on other servers: names that are learnt late, batches, and what their answers mean."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import penstock as ps
from penstock.errors import ConfigError, InvalidRequest, RemoteFailed
from penstock.models import Embedding, Score

MODELS = "/v1/models"


def relay(path: str, body: dict[str, Any] | None) -> AsyncIterator[dict[str, Any]]:  # type: ignore[empty-body]
    """A request to a server, and its answer: one object, or each event. A declaration: it runs there."""


class Upstream:
    """Calls of a server whose model's name may not be known yet."""

    def __init__(self, relay: ps.Service[..., Any], called: str) -> None:
        self.server: Any = relay
        self.called = called

    async def relay(self, path: str, body: dict[str, Any] | None) -> AsyncGenerator[dict[str, Any], None]:
        if body is not None and not body.get("model"):
            body = {**body, "model": await self.name()}
        async with aclosing(self.server(path, body).__aiter__()) as answers:
            async for answer in answers:
                yield answer

    async def whole(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The one object of an answer that is not streamed."""
        found: dict[str, Any] = {}
        async with aclosing(self.relay(path, body)) as answers:
            async for answer in answers:
                found = answer
        return found

    async def name(self) -> str:
        """What the model is called there."""
        if not self.called:
            self.called = only_model(await self.whole(MODELS, None))["id"]
        return self.called


class Embedder:
    """Texts of many calls in one request."""

    def __init__(self, server: Upstream) -> None:
        self.server = server

    async def embed(self, texts: list[str | list[int]]) -> list[Embedding | Exception]:
        return await _each_alone(texts, self._embed)

    async def _embed(self, texts: Sequence[str | list[int]]) -> list[Embedding]:
        body = {"model": self.server.called, "input": list(texts), "encoding_format": "base64"}
        told = await self.server.whole("/v1/embeddings", body)
        rows = rows_of(told, "data", len(texts))
        vectors = [vector_of(row.get("embedding")) for row in rows]
        return [Embedding(*each) for each in zip(vectors, shares_of(told, texts), cuts_of(told, texts), strict=True)]


class Reranker:
    """Documents of many calls in one request; a batch has one query."""

    def __init__(self, server: Upstream) -> None:
        self.server = server

    async def score(self, queries: list[str], documents: list[str]) -> list[Score | Exception]:
        return await _each_alone(documents, lambda some: self._score(queries[0], some))

    async def _score(self, query: str, documents: Sequence[str]) -> list[Score]:
        body = {"model": self.server.called, "query": query, "documents": list(documents)}
        told = await self.server.whole("/v1/rerank", body)
        rows = rows_of(told, "results", len(documents))
        tokens, cuts = shares_of(told, [query + document for document in documents]), cuts_of(told, documents)
        values = [row.get("relevance_score", row.get("score")) for row in rows]
        if not all(isinstance(value, int | float) for value in values):
            raise RemoteFailed("the server's answer has results without a relevance_score")
        return [Score(*each) for each in zip(map(float, values), tokens, cuts, strict=True)]  # type: ignore[arg-type]


def query_of(pair: tuple[str, str]) -> str:
    """What keeps a reranker's calls apart."""
    return pair[0]


async def _each_alone(texts: Sequence[Any], run: Callable[[Sequence[Any]], Awaitable[list[Any]]]) -> list[Any]:
    """What `run` gives for these texts; if the server refuses them together, for each alone, with the error of its own."""
    try:
        return await run(texts)
    except InvalidRequest as error:
        if len(texts) == 1:
            return [error]
    alone = await asyncio.gather(*(run([text]) for text in texts), return_exceptions=True)
    return [end if isinstance(end, BaseException) else end[0] for end in alone]


def rows_of(told: dict[str, Any], field: str, count: int) -> list[dict[str, Any]]:
    """The rows of an answer in the order of what was asked. Raises RemoteFailed."""
    rows = told.get(field)
    given = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    found = {row["index"]: row for row in given if isinstance(row.get("index"), int)}
    if set(found) != set(range(count)) or len(given) != count:
        raise RemoteFailed(f"the server was asked about {count} texts and answered about {len(given)}")
    return [found[n] for n in range(count)]


def vector_of(told: Any) -> Any:
    """Float32, of base64 or of numbers; read-only where there is numpy. Raises RemoteFailed."""
    try:
        data = base64.b64decode(told, validate=True) if isinstance(told, str) else struct.pack(f"<{len(told)}f", *told)
        try:
            import numpy as np
        except ImportError:
            return struct.unpack(f"<{len(data) // 4}f", data)
        return np.frombuffer(data, "<f4")
    except (TypeError, ValueError, struct.error) as error:
        raise RemoteFailed(f"the server answered an embedding that cannot be read: {error}") from None


def shares_of(told: dict[str, Any], texts: Sequence[Any]) -> list[int]:
    """The tokens that a server counted, shared out by the texts' lengths so that their sum stays."""
    usage = told.get("usage")
    used = usage if isinstance(usage, dict) else {}
    total = next((used[key] for key in ("prompt_tokens", "total_tokens") if isinstance(used.get(key), int)), 0)
    length, given, seen, shares = sum(map(len, texts)) or 1, 0, 0, []
    for text in texts:
        seen += len(text)
        shares.append(total * seen // length - given)
        given += shares[-1]
    return shares


def cuts_of(told: dict[str, Any], texts: Sequence[Any]) -> list[int]:
    """The tokens that were cut off each text, where the server says so, as penstock does."""
    cuts, given = [0] * len(texts), told.get("truncated")
    for each in given if isinstance(given, list) else ():
        if isinstance(each, dict) and each.get("index") in range(len(texts)) and isinstance(each.get("cut"), int):
            cuts[each["index"]] = each["cut"]
    return cuts


def only_model(listing: dict[str, Any]) -> dict[str, Any]:
    """The one model of a list. Raises ConfigError that says which there are."""
    data = listing.get("data")
    models = (
        [each for each in data if isinstance(each, dict) and isinstance(each.get("id"), str)] if isinstance(data, list) else []
    )
    if len(models) == 1:
        return models[0]
    names = ", ".join(repr(each["id"]) for each in models[:20])
    raise ConfigError(f"the server has {f'the models {names}; say which' if models else 'no model'}: model=... or URL#model")
