"""Engines: models that are in a folder or on the hub, as what the endpoints serve (`penstock.models`).

Made of the public names alone, so that everything here could be written outside. Libraries are imported when a model is
made, in the worker that runs it: to import this costs nothing and needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.engines.embedding import embed
    from penstock.engines.reranker import rerank
    from penstock.engines.writer import chat

__all__ = ["chat", "embed", "rerank"]
_WHERE = {
    "chat": "penstock.engines.writer",
    "embed": "penstock.engines.embedding",
    "rerank": "penstock.engines.reranker",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
