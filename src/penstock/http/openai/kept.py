"""Whole answers of chat models, kept where a model asks for it (`cache_bytes`), and only those that chance had no part in.

The key is the prompt's tokens and everything that is asked of the sampling; what is kept are the answer's tokens, so that it
may be streamed or not, and end at other stop strings than the first time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec

from penstock.core.policy.cache import Cache, CacheState
from penstock.models import ChatModel, Sampling


class Kept:
    """The answers of all models of an app."""

    def __init__(self) -> None:
        self.states: dict[str, CacheState] = {}

    def key(self, model: ChatModel, prompt: Sequence[int], sampling: Sampling, images: Sequence[bytes]) -> Hashable:
        """What an equal request has too; None if this answer is not to be kept."""
        if not model.cache_bytes or images or sampling.get("temperature", 1.0) > 0:
            return None
        return (tuple(prompt), msgspec.json.encode(sampling, order="deterministic"))

    def find(self, model: ChatModel, key: Hashable, now: float) -> list[Any] | None:
        """The tokens of the answer that is kept."""
        state = self.states.get(model.name)
        entry = None if state is None else state.get(key, now)
        return None if entry is None else entry[0]

    def put(self, model: ChatModel, key: Hashable, items: list[Any], now: float) -> None:
        """Keep an answer that has ended by itself."""
        state = self.states.get(model.name)
        if state is None:
            state = self.states[model.name] = Cache(size_bytes=model.cache_bytes).state()
        state.put(key, items, now)
