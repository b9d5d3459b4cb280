"""Models on servers that speak OpenAI's protocol: Ollama, vLLM, SGLang, a cloud, another penstock.

Queues, limits, fairness, retries and health are ours, in front of them. A chat model's requests pass as they are. Texts
to embed and documents to rerank are batched: one request for many calls, and a text that the server refuses fails
alone. A server that is down when this starts is asked for the name of its model when it is first needed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import penstock as ps
from penstock.engines.placement import service_name
from penstock.engines.upstream_calls import (
    MODELS,
    Embedder,
    Reranker,
    Upstream,
    only_model,
    query_of,
    relay,
    rows_of,
    vector_of,
)
from penstock.errors import ConfigError, InvalidRequest, PenstockError
from penstock.models import EmbeddingModel, ScoreModel, UpstreamModel

log = logging.getLogger("penstock")

Where = str | Sequence[str] | ps.Remote
CONNECTIONS = 128  # requests at once that a server is given; engines that batch by themselves want many
PATIENCE = 600.0  # seconds for an answer that is not streamed, as OpenAI's own clients have it
ASKED = 5.0  # seconds in which a server says at the start what it serves


def chat(
    where: Where, model: str | None = None, *, name: str | None = None, token: str | None = None, **options: Any
) -> UpstreamModel:
    """A chat model on another server.

    `where` is a URL such as http://localhost:11434/v1, several that serve the same model and share the load, or a
    `ps.Remote` of them with connections, health checks and headers of its own. `model` is what it is called there (also
    `URL#model`; default: the one that the server lists), `name` what it is called here. `token` is sent as a bearer token.
    Other options are those of `ps.service`; with `safe=True` a request that failed or was refused before its first token is
    tried on another server. Raises ConfigError if the server has several models and none was chosen.
    """
    place, model = _place(where, model, token)
    found = _entry(place, model) if model is None else {"id": model}
    name = name or found.get("id") or urlsplit(place.urls[0]).netloc
    service = _relay(place, service_name("chat", name), options)
    if found:
        return UpstreamModel(name=name, relay=service, remote_name=found["id"])
    late = ps.service(Upstream(service, "").relay, name=service_name("chat", f"{name}-late"))
    return UpstreamModel(name=name, relay=late, remote_name="", inner=(service,))


def embed(
    where: Where,
    model: str | None = None,
    *,
    name: str | None = None,
    token: str | None = None,
    dimensions: int | None = None,
    max_tokens: int | None = None,
    batch: ps.Batch | None = None,
    **options: Any,
) -> EmbeddingModel:
    """An embedding model on another server; `where`, `model`, `name` and `token` are those of `chat`.

    `dimensions` (default: of a text that is embedded at the start; 0 if the server is down) and `max_tokens` (default: what the
    server says, else 8192) are told to clients. Other options are those of `ps.service`. One request has the texts of up to
    `batch` calls; how many tokens each had is estimated from their sum, by length.
    """
    place, model = _place(where, model, token)
    found = _entry(place, model)
    if dimensions is None:
        dimensions = _dimensions(place, found["id"]) if found else 0
    called = model or found.get("id", "")
    name = name or called or urlsplit(place.urls[0]).netloc
    server = Upstream(_relay(place, service_name("embed", f"{name}-relay"), {"safe": True}), called)
    service = ps.service(
        Embedder(server).embed,
        name=service_name("embed", name),
        batch=batch or ps.Batch(max_size=64, key=type),
        **{"on": ps.Inline(replicas=16), "safe": True, **options},
    )
    most = max_tokens or int(found.get("max_model_len") or 8192)
    return EmbeddingModel(name=name, embed=service, dimensions=dimensions, max_tokens=most, inner=(server.server,))


def rerank(
    where: Where,
    model: str | None = None,
    *,
    name: str | None = None,
    token: str | None = None,
    max_tokens: int | None = None,
    batch: ps.Batch | None = None,
    **options: Any,
) -> ScoreModel:
    """A reranker on another server, by its `/rerank`, which vLLM, Jina, Cohere, Infinity and penstock have.

    `where`, `model`, `name` and `token` are those of `chat`, the rest as in `embed`. One request has the documents of
    one query.
    """
    place, model = _place(where, model, token)
    found = _entry(place, model)
    called = model or found.get("id", "")
    name = name or called or urlsplit(place.urls[0]).netloc
    server = Upstream(_relay(place, service_name("rerank", f"{name}-relay"), {"safe": True}), called)
    service = ps.service(
        Reranker(server).score,
        name=service_name("rerank", name),
        batch=batch or ps.Batch(max_size=64, key=query_of),
        **{"on": ps.Inline(replicas=16), "safe": True, **options},
    )
    most = max_tokens or int(found.get("max_model_len") or 8192)
    return ScoreModel(name=name, score=service, max_tokens=most, inner=(server.server,))


def _place(where: Where, model: str | None, token: str | None) -> tuple[ps.Remote, str | None]:
    """Where requests go, and the model that was named, if one was. Raises ConfigError."""
    if isinstance(where, str):
        where, _, named = where.partition("#")
        model = model or named or None
    place = where if isinstance(where, ps.Remote) else ps.Remote(where, connections=CONNECTIONS)
    urls = [url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1" for url in place.urls]
    return replace(place, urls=tuple(urls), encoding="openai", token=token or place.token), model


def _relay(place: ps.Remote, name: str, options: dict[str, Any]) -> ps.Service[..., Any]:
    return ps.service(relay, name=name, on=place, **{"progress_timeout": PATIENCE, **options})


def _entry(place: ps.Remote, model: str | None) -> dict[str, Any]:
    """What the server's list has of this model, or of the only one; {} if it cannot be asked now. Raises ConfigError."""
    listing = _ask(place, MODELS, None)
    if listing is None:
        return {}
    if model is None:
        return only_model(listing)
    data = listing.get("data")
    listed = [each for each in data if isinstance(each, dict) and each.get("id") == model] if isinstance(data, list) else []
    return listed[0] if listed else {"id": model}


def _dimensions(place: ps.Remote, model: str) -> int:
    """How many numbers a vector has; 0 if the server cannot be asked now."""
    told = _ask(place, "/v1/embeddings", {"model": model, "input": ["a"]})
    return 0 if told is None else len(vector_of(rows_of(told, "data", 1)[0].get("embedding")))


def _ask(place: ps.Remote, path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
    """One call before there is a runtime; None if the server is down. Raises ConfigError for what it refuses."""
    found: dict[str, Any] | None = None
    wrong: BaseException | None = None

    async def main() -> None:
        nonlocal found, wrong
        server = Upstream(_relay(replace(place, health=""), "relay", {"within": ASKED}), "none")
        try:
            async with ps.Runtime(server.server):
                found = await server.whole(path, body)
        except Exception as error:
            wrong = error

    thread = threading.Thread(target=lambda: asyncio.run(main()))  # whoever calls this may have a loop of their own
    thread.start()
    thread.join()
    if isinstance(wrong, InvalidRequest):
        raise ConfigError(f"{place.urls[0]} refuses {path}: {wrong}")
    if wrong is not None and not isinstance(wrong, PenstockError):
        raise wrong
    if wrong is not None:
        log.warning("%s cannot be asked yet what it serves: %s", ", ".join(place.urls), wrong)
    return found
