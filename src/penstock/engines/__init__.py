"""Engines: models that are in a folder, on the hub or on another server, as what the endpoints serve (`penstock.models`).

Made of the public names alone, so that everything here could be written outside. Libraries are imported when a model is
made, in the worker that runs it: to import this costs nothing and needs none of them.
"""

from __future__ import annotations

from typing import Any

from penstock.engines.placement import targets
from penstock.models import ChatModel, EmbeddingModel, ScoreModel, UpstreamModel

__all__ = ["chat", "embed", "rerank"]


def chat(model: Any, *, ttft: float | None = None, tpot: float | None = None, **options: Any) -> ChatModel | UpstreamModel:
    """A model that writes: a folder, a hub's name, or a URL such as http://localhost:11434/v1.

    `ttft` and `tpot` are targets in seconds, for the time to the first token and for each one after it: requests that would
    miss the first are refused (503), and no more run at once than keep the second (`ps.AIMD`). `options` are those
    of `writer.chat`, or of `upstream.chat` for URLs. `penstock.engines.vllm.chat` runs a model with vLLM. Raises ConfigError.
    """
    options = targets(ttft, tpot, options)
    if _elsewhere(model):
        from penstock.engines import upstream

        return upstream.chat(model, **options)
    from penstock.engines import writer

    return writer.chat(model, **options)


def embed(model: Any, **options: Any) -> EmbeddingModel:
    """A model that gives vectors; as `chat`, with the options of `embedding.embed` or `upstream.embed`."""
    if _elsewhere(model):
        from penstock.engines import upstream

        return upstream.embed(model, **options)
    from penstock.engines import embedding

    return embedding.embed(model, **options)


def rerank(model: Any, **options: Any) -> ScoreModel:
    """A model that scores pairs; as `chat`, with the options of `reranker.rerank` or `upstream.rerank`.

    An embedding model (what `embed` gives) scores by the cosine of both vectors.
    """
    if _elsewhere(model):
        from penstock.engines import upstream

        return upstream.rerank(model, **options)
    from penstock.engines import reranker

    return reranker.rerank(model, **options)


def _elsewhere(model: Any) -> bool:
    """Whether this is a URL, several, or a `ps.Remote`."""
    first = model[0] if isinstance(model, list | tuple) and model else model
    return hasattr(first, "urls") or (isinstance(first, str) and first.startswith(("http://", "https://")))
