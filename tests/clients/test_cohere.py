"""The official `cohere` package, unchanged."""

from __future__ import annotations

import asyncio

import pytest

from .conftest import Served

cohere = pytest.importorskip("cohere")
DOCUMENTS = ["a cat", "a dog and a bird", "one bird", "nothing"]


def test_rerank(server: Served) -> None:
    there = cohere.ClientV2(api_key=server.key, base_url=server.url)
    found = there.rerank(model="scores", query="a bird", documents=DOCUMENTS)
    assert [result.index for result in found.results] == [1, 0, 2, 3] and found.results[0].relevance_score == 1.0
    found = there.rerank(model="scores", query="a bird", documents=DOCUMENTS, top_n=2, max_tokens_per_doc=20)
    assert [result.index for result in found.results] == [1, 0] and found.meta.billed_units.search_units == 1


def test_rerank_async(server: Served) -> None:
    async def main() -> None:
        there = cohere.AsyncClientV2(api_key=server.key, base_url=server.url)
        many = await asyncio.gather(*(there.rerank(model="scores", query=f"q{n}", documents=[f"q{n}", "x"]) for n in range(20)))
        assert all(found.results[0].index == 0 and found.results[0].relevance_score == 1.0 for found in many)

    asyncio.run(main())


def test_errors_are_its_classes(server: Served) -> None:
    there = cohere.ClientV2(api_key=server.key, base_url=server.url)
    with pytest.raises(cohere.errors.NotFoundError):
        there.rerank(model="nobody", query="q", documents=["d"])
    with pytest.raises(cohere.errors.BadRequestError):
        there.rerank(model="scores", query="q", documents=[])
    with pytest.raises(cohere.errors.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=server.url).rerank(model="scores", query="q", documents=["d"])
