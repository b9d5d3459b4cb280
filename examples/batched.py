"""A model that is faster in batches: the caller passes one text, the model sees up to 16 of similar length."""

import hashlib
import time

import penstock as ps


def padded(texts: list[str]) -> float:
    """What a batch costs: as many characters as the longest, for each."""
    return float(len(texts) * max(map(len, texts)))


class Embedder:
    """Emulates a model: a fixed time for a batch, and a little for each padded character."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, texts: list[str]) -> list[list[float] | Exception]:
        time.sleep(0.005 + 1e-6 * padded(texts))
        return [self.embed(text) if text else ValueError("an empty text has no vector") for text in texts]

    def embed(self, text: str) -> list[float]:
        return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[: self.size]]


embed = ps.service(
    Embedder,
    8,
    name="embed",
    batch=ps.Batch(max_size=16, max_wait=0.005, cost=padded, max_cost=20_000),
    order=ps.FairShare(),
    safe=True,
)
app = ps.App(embed)
