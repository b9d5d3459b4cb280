"""Any encoder that transformers has, on torch: texts of similar length as one padded run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.engines.pooling import Counts, Vectors, in_order, places, pool
from penstock.engines.runs import padded_runs
from penstock.engines.torch_model import load, padded


class TorchSegments:
    """Over tensors, where they are."""

    def __init__(self, lengths: Counts, skipped: Counts, device: Any) -> None:
        import torch

        self.torch = torch
        self.places = torch.as_tensor(places(lengths) + np.repeat(skipped, lengths), device=device)[:, None]
        self.lengths = torch.as_tensor(lengths, device=device)
        self.device = device

    def sum(self, rows: Any) -> Any:
        return self.torch.segment_reduce(rows, "sum", lengths=self.lengths)

    def max(self, rows: Any) -> Any:
        return self.torch.segment_reduce(rows, "max", lengths=self.lengths)

    def weigh(self, rows: Any) -> Any:
        return rows * self.places

    def column(self, numbers: npt.NDArray[Any]) -> Any:
        return self.torch.as_tensor(numbers[:, None], dtype=self.torch.float32, device=self.device)

    def join(self, parts: list[Any]) -> Any:
        return self.torch.cat(parts, dim=1)


class TorchEncoder:
    """`encode(ids, modes, skip)` gives [texts, width x modes]."""

    def __init__(self, folder: Path, threads: int, dtype: str | None, pickles: bool) -> None:
        self.model = load("AutoModel", folder, threads=threads, dtype=dtype, pickles=pickles, spare=("pooler.",))
        import torch

        self.torch = torch
        self.vocabulary = int(self.model.get_input_embeddings().num_embeddings)

    def encode(self, texts: Sequence[Sequence[int]], modes: Sequence[str], skip: Sequence[int]) -> Vectors:
        runs = padded_runs([len(ids) for ids in texts], self.model.device)
        return in_order(runs, [self._run([texts[n] for n in run], modes, [skip[n] for n in run]) for run in runs])

    def _run(self, texts: list[Sequence[int]], modes: Sequence[str], skip: Sequence[int]) -> Vectors:
        with self.torch.inference_mode():
            ids, mask = padded(texts, self.model.device)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            skipped = np.asarray(skip, np.int64)
            lengths = np.fromiter(map(len, texts), np.int64, len(texts)) - skipped
            column = self.torch.arange(mask.shape[1], device=mask.device)
            first = self.torch.as_tensor(skipped, device=mask.device)
            rows = states[(mask == 1) & (column >= first[:, None])].float()
            vectors = pool(rows, lengths, skipped, modes, TorchSegments(lengths, skipped, rows.device))
            found: Vectors = vectors.cpu().numpy()
        return found
