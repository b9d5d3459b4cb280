"""From the hidden states of a batch's tokens to one vector for each text.

The rows of all texts come packed, one text after the other, without padding: `rows` [tokens, width], `lengths` [texts].
The same few lines serve numpy and torch, which differ in how a segment is summed; what is behind the pooling is small
and runs in numpy. Source: Reimers and Gurevych 2019 (mean, max, first token), Muennighoff 2022 (weighted mean).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penstock.engines.embedding_config import Dense, EmbeddingConfig
from penstock.errors import ConfigError

Vectors = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


class Segments(Protocol):
    """What numpy and torch each do their own way, over the segments of one batch."""

    def sum(self, rows: Any) -> Any: ...
    def max(self, rows: Any) -> Any: ...
    def weigh(self, rows: Any) -> Any:
        """Each row times its place in its text, from 1."""
        ...

    def column(self, numbers: npt.NDArray[Any]) -> Any:
        """Numbers of the segments, as a column."""
        ...

    def join(self, parts: list[Any]) -> Any:
        """Side by side."""
        ...


class NumpySegments:
    """Over arrays. `reduceat` wants no empty segment; a text always has a token."""

    def __init__(self, lengths: Counts, skipped: Counts) -> None:
        self.places = (places(lengths) + np.repeat(skipped, lengths))[:, None].astype(np.float32)
        self.starts = np.cumsum(lengths) - lengths

    def sum(self, rows: Any) -> Any:
        return np.add.reduceat(rows, self.starts, axis=0)

    def max(self, rows: Any) -> Any:
        return np.maximum.reduceat(rows, self.starts, axis=0)

    def weigh(self, rows: Any) -> Any:
        return rows * self.places

    def column(self, numbers: npt.NDArray[Any]) -> Any:
        return numbers[:, None].astype(np.float32)

    def join(self, parts: list[Any]) -> Any:
        return np.concatenate(parts, axis=1)


def places(lengths: Counts) -> Counts:
    """The place of each packed token in its text, from 1."""
    starts = np.cumsum(lengths) - lengths
    found: Counts = np.arange(1, int(lengths.sum()) + 1) - np.repeat(starts, lengths)
    return found


def pool(rows: Any, lengths: Counts, skipped: Counts, modes: Sequence[str], segments: Segments) -> Any:
    """[texts, width x modes]; as sentence-transformers does for texts without padding.

    `lengths` counts the rows that are here; `skipped` are those of a prompt, left out, which still had the first places.
    """
    ends = np.cumsum(lengths)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(rows[ends - lengths])
        elif mode == "lasttoken":
            parts.append(rows[ends - 1])
        elif mode == "max":
            parts.append(segments.max(rows))
        elif mode == "weightedmean":
            parts.append(segments.sum(segments.weigh(rows)) / segments.column(lengths * (lengths + 1) / 2 + lengths * skipped))
        else:
            parts.append(segments.sum(rows) / segments.column(lengths if mode == "mean" else np.sqrt(lengths)))
    return parts[0] if len(parts) == 1 else segments.join(parts)


def in_order(runs: Sequence[Sequence[int]], found: Sequence[Vectors]) -> Vectors:
    """What was found run by run, in the order of the batch."""
    together = np.concatenate(found)
    placed = np.empty_like(together)
    placed[[n for run in runs for n in run]] = together
    return placed


_erf: Any = np.vectorize(math.erf, otypes=[np.float32])
ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "GELU": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
}


class Head:
    """The layers behind the pooling: linear ones, and the L2 norm."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self.layers = [None if layer is None else _load(layer) for layer in config.after]

    def __call__(self, vectors: Vectors) -> Vectors:
        for layer in self.layers:
            if layer is None:
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            else:
                weight, bias, activation = layer
                vectors = activation(vectors @ weight.T + bias)
        return vectors


def _load(dense: Dense) -> tuple[Vectors, Any, Any]:
    if dense.activation not in ACTIVATIONS:
        raise ConfigError(f"{dense.folder}: no activation {dense.activation!r} here; there are {', '.join(ACTIVATIONS)}")
    path = dense.folder / "model.safetensors"
    if not path.is_file():
        raise ConfigError(f"{dense.folder} has no model.safetensors: the weights of a layer after the pooling")
    tensors = read_safetensors(path)
    return tensors["linear.weight"], tensors.get("linear.bias", np.float32(0)), ACTIVATIONS[dense.activation]


def read_safetensors(path: Path) -> dict[str, Vectors]:
    """The tensors of a safetensors file as float32: an 8-byte length, a JSON header, the bytes. Mapped where they are that."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[8:start].tobytes())
    tensors: dict[str, Vectors] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in ("F32", "F16", "BF16"):
            continue
        first, last = entry["data_offsets"]
        data: Any = raw[start + first : start + last]
        if entry["dtype"] == "BF16":  # the upper half of a float32
            data = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            data = data.view("<f4" if entry["dtype"] == "F32" else "<f2").astype(np.float32, copy=False)
        tensors[name] = data.reshape(entry["shape"])
    return tensors
