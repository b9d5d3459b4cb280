"""Reranking: how well each of some documents answers a query, every pair a call, pairs of all requests in common batches.

Which kind of model it is, its own config says: a classifier of one label (`cross_encoder`), or a language model that is
asked for "yes" or "no" (`yes_no`). An embedding model can do it too, by the cosine of what it makes of both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import penstock as ps
from penstock.engines.placement import Engine, batch_of, placed, replicas_of, service_name
from penstock.engines.source import locate
from penstock.engines.texts import estimated_tokens, folder_tokenizer
from penstock.errors import ConfigError
from penstock.models import EmbeddingModel, Score, ScoreModel

_READ = 8192  # of the tokens that a language model could read, so many are a pair's unless more are asked for
_ASKED = 30  # tokens around a pair that are computed for each


def tokens(around: int, limit: int, pairs: Sequence[tuple[str, str]]) -> float:
    """What a batch of pairs costs."""
    return sum(min(limit, around + estimated_tokens(query) + estimated_tokens(text)) for query, text in pairs)


def rerank(
    model: str | os.PathLike[str] | EmbeddingModel,
    *,
    name: str | None = None,
    engine: Engine = "auto",
    task: str | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    pickles: bool = False,
    batch: ps.Batch | None = None,
    on: ps.Thread | ps.Process | None = None,
    cache_bytes: int = 16 << 20,
    **options: Any,
) -> ScoreModel:
    """The reranker of a folder or a hub's name, or one made of an embedding model.

    `task` is the instruction to a language model (what a search is for). `cache_bytes` keeps scores by pair. The other
    parameters are those of `embed`. Raises ConfigError.
    """
    if isinstance(model, EmbeddingModel):
        return _by_cosine(model, name, options)
    from penstock.engines.cross_encoder import CrossEncoder, logit, pair_limit, squeezes
    from penstock.engines.yes_no import TASK, YesNo

    source = locate(model, revision=revision, pickles=pickles)
    kind = _kind(source.name, source.config)
    limit = pair_limit(source, max_tokens)
    body: Any
    raw: Callable[[float], float] | None = logit
    if kind == "yes_no":
        limit = min(limit, max_tokens or _READ)
        chosen, on = placed(source, source.config, "torch" if engine == "auto" else engine, on)
        body = functools.partial(YesNo, source, limit, task or TASK, replicas_of(on), dtype, pickles)
    else:
        if task is not None:
            raise ConfigError(f"rerank(task=...): {source.name!r} is a classifier and takes no instruction")
        chosen, on = placed(source, source.config, engine, on)
        raw = logit if squeezes(source) else None
        body = functools.partial(CrossEncoder, source, limit, chosen, replicas_of(on), dtype, pickles)
    if batch is None:
        batch = batch_of(functools.partial(tokens, _ASKED if kind == "yes_no" else 0, limit), on)
    service = ps.service(
        body,
        name=service_name("rerank", name or source.name),
        batch=batch,
        on=on,
        cache=ps.Cache(size_bytes=cache_bytes),
        **{"safe": True, **options},
    )
    tokenizer = folder_tokenizer(source.folder)
    return ScoreModel(name=name or source.name, score=service, max_tokens=limit, tokenizer=tokenizer, raw=raw)


def _kind(name: str, config: Mapping[str, Any]) -> str:
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForCausalLM"):
        return "yes_no"
    if not architecture.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{name!r} is a {architecture or 'model of no known kind'}: a reranker is a classifier of one label "
            "(...ForSequenceClassification), a language model (...ForCausalLM), or rerank(embed(...))"
        )
    labels = len(config.get("id2label") or range(config.get("num_labels", 2)))
    if labels != 1:
        raise ConfigError(f"{name!r} has {labels} labels; a reranker has one")
    return "classifier"


def _by_cosine(model: EmbeddingModel, name: str | None, options: Mapping[str, Any]) -> ScoreModel:
    """Both texts go through the embedding model's own batches and cache, so a query is embedded once."""
    ask = "query" if "query" in model.prompts else ""
    tell = next((prompt for prompt in ("document", "passage", "corpus") if prompt in model.prompts), "")

    async def score(query: str, document: str) -> Score:
        asked, told = await ps.join(_embedding(model, query, ask), _embedding(model, document, tell))
        x, y = asked.vector, told.vector
        cosine = float(x @ y) / max(float(x @ x) * float(y @ y), 1e-24) ** 0.5
        return Score(cosine, asked.tokens + told.tokens, asked.cut + told.cut)

    service = ps.service(score, name=service_name("rerank", name or model.name), **{"safe": True, **options})
    return ScoreModel(
        name=name or model.name, score=service, max_tokens=model.max_tokens, tokenizer=model.tokenizer, inner=model.services
    )


def _embedding(model: EmbeddingModel, text: str, prompt: str) -> Any:
    return model.embed(text, prompt) if prompt else model.embed(text)
