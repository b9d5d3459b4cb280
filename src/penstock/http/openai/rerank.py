"""`POST /v1/rerank` (Jina), `/v2/rerank` (Cohere), `/rerank` (TEI, vLLM, infinity) and `/v1/score` (vLLM).

Each pair of query and document is a call of its own, so pairs of many requests share batches.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from penstock.http.message import Answer
from penstock.http.openai.catalogue import SCORES
from penstock.http.openai.faults import Rejected
from penstock.http.openai.parts import together, truncated
from penstock.http.openai.route import Asked, Route, answered, aside
from penstock.http.openai.wire import Reranking, Scoring
from penstock.models import Score, ScoreModel

MOST_DOCUMENTS = 1000


class RerankRoute(Route[Reranking]):
    """Documents by how well they answer a query, best first."""

    shape = Reranking

    def answer(self, body: Reranking, asked: Asked) -> Coroutine[Any, Any, Answer]:
        model: ScoreModel = self.model(body.model, SCORES)
        param = "texts" if body.texts is not None else "documents"
        given = body.texts if body.texts is not None else body.documents
        if not given or (body.texts is not None and body.documents is not None):
            raise Rejected("documents: a list of at least one text (or texts, as TEI has it)", param)
        if len(given) > MOST_DOCUMENTS:
            raise Rejected(f"{param}: at most {MOST_DOCUMENTS} in a request, not {len(given)}; send them in parts", param)
        documents = [_text(each, body.rank_fields, f"{param}[{n}]") for n, each in enumerate(given)]
        if body.max_tokens_per_doc is not None and model.tokenizer is None:
            raise Rejected(f"the tokens of {model.name} are not known here", "max_tokens_per_doc")
        return answered(asked, self._rank(body, asked, model, documents))

    async def _rank(self, body: Reranking, asked: Asked, model: ScoreModel, documents: list[str]) -> bytes:
        cuts = [0] * len(documents)
        read = documents
        if body.max_tokens_per_doc is not None:
            read, cuts = await aside(asked.size, _shortened, model.tokenizer, documents, body.max_tokens_per_doc)
        scores = await together(asked, [(model.score, (body.query, document)) for document in read])
        scores = [Score(s[0], s[1], s[2] + cut) for s, cut in zip(scores, cuts, strict=True)]
        cut = truncated(scores, "documents" if body.texts is None else "texts", body.truncate, model.max_tokens)
        return msgspec.json.encode(_told(body, asked, model, documents, scores, cut))


def _text(document: str | dict[str, Any], fields: list[str] | None, where: str) -> str:
    """A document's text: of an object the `rank_fields`, or `text`."""
    if isinstance(document, str):
        return document
    parts = [document.get(name) for name in fields or ("text",)]
    if not all(isinstance(part, str) for part in parts):
        raise Rejected(f"{where}: a string, or an object with the text in {' and '.join(fields or ('text',))}", where)
    return "\n".join(parts)  # type: ignore[arg-type]


def _shortened(tokenizer: Any, documents: Sequence[str], most: int) -> tuple[list[str], list[int]]:
    """Documents of at most so many tokens, and how many were cut off each."""
    read, cuts = [], []
    for document in documents:
        ids = tokenizer.encode(document, special=False)
        read.append(document if len(ids) <= most else tokenizer.decode(ids[:most]))
        cuts.append(max(0, len(ids) - most))
    return read, cuts


def _told(
    body: Reranking,
    asked: Asked,
    model: ScoreModel,
    documents: Sequence[str],
    scores: Sequence[Score],
    cut: list[dict[str, int]],
) -> Any:
    """The answer in the shape of the request's kind."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n].value, n))[: body.top_n or None]
    values = [model.raw(s.value) if body.raw_scores and model.raw is not None else s.value for s in scores]
    if body.texts is not None:  # TEI
        more: list[dict[str, Any]] = [{"text": text} if body.return_text else {} for text in documents]
        for each in cut:
            more[each["index"]] |= {"cut": each["cut"]}
        return [{"index": n, "score": values[n], **more[n]} for n in order]
    cohere = asked.path == "/v2/rerank"
    with_text = body.return_documents if body.return_documents is not None else not cohere
    results = [
        {"index": n, "relevance_score": values[n], **({"document": {"text": documents[n]}} if with_text else {})} for n in order
    ]
    tokens = sum(s.tokens for s in scores)
    told: dict[str, Any] = {"id": f"rerank-{asked.id}", "results": results}
    if cohere:
        units = {"search_units": 1, "input_tokens": tokens}
        told["meta"] = {"api_version": {"version": "2"}, "billed_units": units}
    else:
        told |= {"model": model.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    if cut:
        told["truncated"] = cut
        if cohere:
            told["meta"]["warnings"] = [f"documents[{each['index']}]: {each['cut']} tokens were cut off" for each in cut]
    return told


class ScoreRoute(Route[Scoring]):
    """Scores of pairs, in the order of the request."""

    shape = Scoring

    def answer(self, body: Scoring, asked: Asked) -> Coroutine[Any, Any, Answer]:
        model: ScoreModel = self.model(body.model, SCORES)
        given = [
            (body.text_1, body.text_2, "text_1", "text_2"),
            (body.queries, body.documents, "queries", "documents"),
            (body.queries, body.items, "queries", "items"),
            (body.data_1, body.data_2, "data_1", "data_2"),
        ]
        named = [each for each in given if each[0] is not None and each[1] is not None]
        if len(named) != 1:
            raise Rejected("give text_1 and text_2 (or queries and documents): a string or a list of strings each", "text_1")
        left, right, first, second = named[0]
        ones = [left] if isinstance(left, str) else left or []
        others = [right] if isinstance(right, str) else right or []
        if not ones or not others:
            raise Rejected(f"{first if not ones else second} is empty", first if not ones else second)
        if len(ones) == 1:
            ones = ones * len(others)
        if len(ones) != len(others):
            raise Rejected(
                f"{first} has {len(ones)} texts and {second} {len(others)}: one to one, one to many, or as many of each", second
            )
        if len(ones) > MOST_DOCUMENTS:
            raise Rejected(f"{second}: at most {MOST_DOCUMENTS} pairs in a request, not {len(ones)}", second)
        return answered(asked, self._score(asked, model, list(zip(ones, others, strict=True))))

    async def _score(self, asked: Asked, model: ScoreModel, pairs: Sequence[tuple[str, str]]) -> bytes:
        scores = await together(asked, [(model.score, pair) for pair in pairs])
        tokens = sum(s[1] for s in scores)
        told: dict[str, Any] = {
            "id": f"score-{asked.id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": [{"index": n, "object": "score", "score": s[0]} for n, s in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }
        if cut := truncated(scores, "pairs", None, model.max_tokens):
            told["truncated"] = cut
        return msgspec.json.encode(told)
