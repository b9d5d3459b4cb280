"""Embeddings: texts to vectors, in batches of similar length, equal to sentence-transformers' to 1e-5.

On a processor a batch of mixed lengths, padded, is slower than no batch at all. So workers cut a batch into runs of texts
of similar length (`runs`), or do not pad at all (`encoder_onnx`); then a batch costs the sum of its tokens, whatever its
mix, and its tokens are all that the scheduler has to know.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import penstock as ps
from penstock.engines.embedding_config import POOLINGS, EmbeddingConfig, read_config
from penstock.engines.placement import Engine, batch_of, placed, replicas_of, service_name
from penstock.engines.source import Source, locate
from penstock.engines.texts import Reader, estimated_tokens, folder_tokenizer, load_tokenizer
from penstock.engines.torch_model import cores
from penstock.errors import ConfigError
from penstock.models import Embedding, EmbeddingModel


class Embedder:
    """One replica. Called with texts (or lists of token ids) and the names of their prompts."""

    def __init__(
        self, source: Source, config: EmbeddingConfig, engine: str, replicas: int, dtype: str | None, pickles: bool
    ) -> None:
        from penstock.engines.pooling import Head

        threads = cores(replicas)
        self.config = config
        tokenizer = load_tokenizer(config.encoder, transformers=engine == "torch")
        self.encoder: Any
        if engine == "onnx":
            from penstock.engines.encoder_onnx import OnnxEncoder

            self.encoder = OnnxEncoder(source.weights, config.model, threads)
        else:
            from penstock.engines.encoder_torch import TorchEncoder

            self.encoder = TorchEncoder(config.encoder, threads, dtype, pickles)
        vocabulary = self.encoder.vocabulary
        self.reader = Reader(tokenizer, config.max_tokens, vocabulary, config.lower, config.prompts, config.default_prompt)
        self.head = Head(config)

    def __call__(self, texts: list[str | list[int]], prompts: Sequence[str] = "") -> list[Embedding | Exception]:
        found: list[Any] = self.reader.read(texts, prompts or [""] * len(texts))
        places = [n for n, read in enumerate(found) if not isinstance(read, Exception)]
        reads = [found[n] for n in places]
        if not reads:
            return found
        skip = [0 if self.config.pool_prompt else read.prompt for read in reads]
        vectors = self.head(self.encoder.encode([read.ids for read in reads], self.config.pooling, skip))
        for n, read, vector in zip(places, reads, vectors, strict=True):
            own = vector.copy()  # not a row that keeps its whole batch in memory
            own.flags.writeable = False  # equal callers share it
            found[n] = Embedding(own, len(read.ids), read.cut)
        return found


def tokens(limit: int, items: Sequence[tuple[Any, str]]) -> float:
    """What a batch costs."""
    return sum(min(estimated_tokens(text), limit) for text, _ in items)


def embed(
    model: str | os.PathLike[str],
    *,
    name: str | None = None,
    engine: Engine = "auto",
    max_tokens: int | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    pickles: bool = False,
    batch: ps.Batch | None = None,
    on: ps.Thread | ps.Process | None = None,
    cache_bytes: int = 64 << 20,
    **options: Any,
) -> EmbeddingModel:
    """The embedding model of a folder or a hub's name, as a service that batches.

    Everything about the vectors is read from the model's own files; `max_tokens`, `pooling`, `normalize` and `prompt` (the
    name of the prompt for calls that name none) say otherwise. `engine` "onnx" runs BERT-like models on a processor, without
    padding and without torch; "torch" runs all that transformers has. `on`: threads of this process, or child processes (the
    default for torch, on the first GPU if there is one); threads of the libraries are cores / replicas. `dtype` is torch's, by
    default float32 on a processor and that of the weights on a GPU. `cache_bytes` keeps vectors by text (0: only equal calls
    in flight share one). Other options are those of `ps.service`. Raises ConfigError.
    """
    source = locate(model, revision=revision, pickles=pickles)
    config = _adjusted(source.name, read_config(source, max_tokens), pooling, normalize, prompt)
    chosen, on = placed(source, config.model, engine, on)
    if batch is None:
        batch = batch_of(functools.partial(tokens, config.max_tokens), on)
    service = ps.service(
        functools.partial(Embedder, source, config, chosen, replicas_of(on), dtype, pickles),
        name=service_name("embed", name or source.name),
        batch=batch,
        on=on,
        cache=ps.Cache(size_bytes=cache_bytes),
        **{"safe": True, **options},
    )
    return EmbeddingModel(
        name=name or source.name,
        embed=service,
        dimensions=config.dimensions,
        max_tokens=config.max_tokens,
        tokenizer=folder_tokenizer(config.encoder),
        shorten=config.shorten,
        prompts=config.prompts,
    )


def _adjusted(
    name: str, config: EmbeddingConfig, pooling: str | None, normalize: bool | None, prompt: str | None
) -> EmbeddingConfig:
    """With what the caller says otherwise than the model's files."""
    if pooling is not None:
        if pooling not in POOLINGS or any(config.after):
            why = "its layers behind the pooling want their own" if any(config.after) else f"one of {', '.join(POOLINGS)}"
            raise ConfigError(f"embed(pooling={pooling!r}): for {name!r}, {why}")
        config = replace(config, pooling=(pooling,), dimensions=config.dimensions // len(config.pooling))
    if normalize is not None:
        layers = tuple(layer for layer in config.after if layer is not None)
        config = replace(config, after=(*layers, None) if normalize else layers)
    if prompt is not None:
        if prompt and prompt not in config.prompts:
            raise ConfigError(f"embed(prompt={prompt!r}): {name!r} has {', '.join(config.prompts) or 'no prompts'}")
        config = replace(config, default_prompt=prompt)
    return config
