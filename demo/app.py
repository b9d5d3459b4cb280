"""The app that the demo serves: `penstock serve demo.app:app`."""

from __future__ import annotations

import numpy as np

import penstock as ps
from demo.minilm import Embedder, packed_tokens

embed = ps.service(
    Embedder,
    name="embed",
    batch=ps.Batch(max_size=32, cost=packed_tokens, max_cost=4096, max_wait=0.002),
    safe=True,
)


@ps.service(name="similarity", safe=True)
async def similarity(a: str, b: str) -> float:
    """The cosine of two texts' vectors; both go through the same batches."""
    x, y = await ps.join(embed(a), embed(b))
    return float(np.dot(x, y))


app = ps.App(embed, similarity, name="MiniLM", log=False)
