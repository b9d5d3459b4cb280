"""Apps of the small models, for `penstock serve`."""

from __future__ import annotations

from speaking import embedder, parrot, scorer

import penstock as ps

app = ps.App(models=(parrot(), embedder(), scorer()))
chat = ps.App(models=(parrot(),))
vectors = ps.App(models=(embedder(),))
