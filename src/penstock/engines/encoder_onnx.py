"""BERT-like encoders on onnxruntime, straight from their safetensors: for processors, and without torch.

Theory: a matrix product reaches its full rate from about a hundred rows, so a text of a dozen tokens wastes a quarter
of the processor when it goes alone, and a padded batch of mixed lengths wastes more than it wins. Therefore the
linear layers and the norms run on *packed* tokens, `[tokens, width]`, without padding; only attention, a tenth of the
arithmetic, spreads them out to `[texts, longest]`, and texts of similar length go together in runs of about 192
tokens (longer ones leave the cache). So a batch costs `a x runs + b x tokens`, whatever its mix of lengths.

Source: Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa: the same, with shifted positions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engines.packed_graph import packed_graph
from penstock.engines.pooling import NumpySegments, Vectors, in_order, places, pool, read_safetensors
from penstock.engines.runs import plan
from penstock.errors import ConfigError

RUN_TOKENS = 192  # one run of the graph; measured flat from 128 to 512


class OnnxEncoder:
    """`encode(ids, modes)` gives [texts, width x modes]. Calls are thread-safe and release the GIL."""

    def __init__(self, files: Sequence[Path], config: Mapping[str, Any], threads: int, run_tokens: int = RUN_TOKENS) -> None:
        weights: dict[str, Vectors] = {}
        for path in files:
            weights |= read_safetensors(path)
        self.run_tokens = run_tokens
        self.vocabulary = int(config["vocab_size"])
        self.first = 0 if config["model_type"] == "bert" else int(config.get("pad_token_id", 1)) + 1
        try:
            graph = packed_graph(weights, config)
        except KeyError as lacking:
            raise ConfigError(f"{files[0].parent} lacks weights of its model: {lacking}") from None
        self._session = _session(graph, threads)

    def encode(self, texts: Sequence[Sequence[int]], modes: Sequence[str], skip: Sequence[int]) -> Vectors:
        found: list[Vectors] = []
        runs = plan([len(ids) for ids in texts], self.run_tokens)
        for run in runs:
            rows, lengths = self.states([texts[n] for n in run])
            skipped = np.array([skip[n] for n in run])
            if skipped.any():
                rows = rows[places(lengths) > np.repeat(skipped, lengths)]
            lengths = lengths - skipped
            found.append(pool(rows, lengths, skipped, modes, NumpySegments(lengths, skipped)))
        return in_order(runs, found)

    def states(self, texts: Sequence[Sequence[int]], kinds: Sequence[Sequence[int]] | None = None) -> tuple[Vectors, Any]:
        """The last hidden states of one run's tokens, packed, and how many each text has."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        total, longest = int(lengths.sum()), int(lengths.max())
        starts = np.cumsum(lengths) - lengths
        place = places(lengths) - 1
        column = np.arange(longest)
        feed = {
            "ids": np.concatenate([np.asarray(ids, np.int64) for ids in texts]),
            "positions": place + self.first,
            "kinds": np.zeros(total, np.int64) if kinds is None else np.concatenate([np.asarray(k, np.int64) for k in kinds]),
            "spread": np.where(column < lengths[:, None], starts[:, None] + column, 0),
            "collect": np.repeat(np.arange(len(texts)), lengths) * longest + place,
            "lengths": lengths.astype(np.int32),
        }
        return self._session.run(None, feed)[0], lengths


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # "Extended" would fuse add and norm into SkipLayerNormalization, whose kernel is five times slower here.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
