"""What a causal language model's own files say of how it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from penstock.engines.source import Source
from penstock.errors import ConfigError
from penstock.models import Sampling

RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
BY_LENGTH = ("dynamic", "longrope")  # positions that depend on the longest request in the batch


@dataclass(frozen=True)
class CausalConfig:
    """The tokens that a prompt and its answer may have together, those that end an answer, and how to choose others."""

    context: int
    stops: frozenset[int]
    recommended: Sampling


def read_causal(source: Source, context: int | None = None) -> CausalConfig:
    """What the files say; `context` can only be less. Raises ConfigError."""
    config = _text_config(source)
    generation = source.json("generation_config.json")
    generation = generation if isinstance(generation, dict) else {}
    longest = _context(config, source.name)
    if context is not None and not 1 < context <= longest:
        raise ConfigError(f"{source.name}: context={context}: 2 to {longest}")
    stops = _stops(generation.get("eos_token_id", config.get("eos_token_id")))
    recommended = {key: generation[key] for key in RECOMMENDED if generation.get(key) is not None}
    return CausalConfig(context or longest, stops, cast(Sampling, recommended))


def _text_config(source: Source) -> Mapping[str, Any]:
    inner = source.config.get("text_config")
    return {**source.config, **inner} if isinstance(inner, dict) else source.config


def _stops(asked: Any) -> frozenset[int]:
    ids = asked if isinstance(asked, list) else [asked]
    return frozenset(token for token in ids if isinstance(token, int) and token >= 0)


def _context(config: Mapping[str, Any], name: str) -> int:
    """How many tokens the model was made for."""
    longest = next((config[key] for key in ("max_position_embeddings", "n_positions", "max_seq_len") if config.get(key)), None)
    if not isinstance(longest, int):
        raise ConfigError(f"{name}: its config.json does not say how many tokens it was made for (max_position_embeddings)")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in BY_LENGTH:
        return int(rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest)
    return longest
