"""Chat models: any causal LM of transformers with plain attention, run in slots, in a child process by default.

    model = chat("Qwen/Qwen3-0.6B", slots=64)
    app = ps.App(models=[model])

This process reads the model's configuration and its tokenizer; torch and transformers are loaded where the model runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import penstock as ps
from penstock.engines.causal_config import read_causal
from penstock.engines.placement import Place, placed, replicas_of, service_name
from penstock.engines.source import Source, locate
from penstock.engines.tokenizer import FolderTokenizer
from penstock.errors import ConfigError
from penstock.models import ChatModel, Feature, Sampling

FEATURES: frozenset[Feature] = frozenset(("logprobs", "seed", "penalties", "logit_bias"))
WRITTEN = 2.0  # what a token written is charged, in tokens read: as in VTC (OSDI 2024)
AHEAD = 512  # tokens that a slot may be ahead of its reader: numbers are small, and a slot that pauses is a gap in every step
WITH_IMAGES = ("idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl")  # kinds whose images are tokens among others
PATIENCE = 600.0  # seconds without a token after which a model is taken to hang: long prompts on small processors take long


class Writer:
    """The body of the service: loads the model where it runs."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from penstock.engines.writing import Writing

        self._writing = Writing(folder, **options)

    def add(self, slot: int, prompt: list[int], sampling: dict[str, Any], images: Sequence[bytes] = ()) -> int:
        """A request joins; reading its prompt takes as many units as it has tokens."""
        return self._writing.add(slot, prompt, sampling, images)

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        """A token of everybody who writes, and some of the prompts."""
        return self._writing.step(slots)

    def drop(self, slot: int) -> None:
        """It has ended."""
        self._writing.drop(slot)


def tokens_read(prompt: Sequence[int], sampling: Sampling, images: Sequence[bytes] = ()) -> float:
    """What the start of a request costs: reading its prompt."""
    return float(len(prompt))


def tokens_held(prompt: Sequence[int], sampling: Sampling, images: Sequence[bytes] = ()) -> int:
    """What a request may come to hold in the cache of keys and values."""
    return len(prompt) + sampling["max_tokens"]


def chat(
    model: str | os.PathLike[str],
    *,
    name: str | None = None,
    slots: int = 32,
    context: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    on: Place | None = None,
    stretch: float = 1.5,
    budget: int | None = None,
    kv_tokens: int | None = None,
    defaults: Sampling | None = None,
    max_tokens: int | None = None,
    cache_bytes: int = 0,
    revision: str | None = None,
    pickles: bool = False,
    **options: Any,
) -> ChatModel:
    """A chat model over a folder with a causal LM, or a hub's name: `slots` requests at once in each replica.

    `context` bounds a prompt and its answer together (default: what the model was made for). `dtype` is such as
    "bfloat16" (default: float32 on a processor, on a GPU what the weights are). It runs in a child process, on `device`, such
    as "cuda:0" (default: a GPU if there is one); or where `on` says. `stretch` and `budget` are those of `ps.Slots`: how much
    starts may slow a step, or how many tokens one may have; `kv_tokens` bounds the tokens of all prompts under way and of the
    answers that they may have (default: every slot has the whole context). `defaults` is how to sample where a request does
    not say; without it the model's own generation_config.json decides. `max_tokens` bounds answers for which a request names
    no number, `cache_bytes` keeps whole answers at temperature 0. `revision` and `pickles` are those of
    `penstock.engines.source.locate`, `options` those of `ps.service`: admit, order, limit, within and so on
    (`progress_timeout` is ten minutes). Raises ConfigError for what cannot be run, here or when the model is loaded.
    """
    source = locate(model, revision=revision, pickles=pickles)
    tokenizer = FolderTokenizer(source.folder)
    config = read_causal(source, context)
    images = source.config.get("model_type") in WITH_IMAGES
    place = _place(source, on, device)
    writer = functools.partial(
        Writer,
        source.folder,
        context=config.context,
        stops=config.stops,
        dtype=dtype,
        replicas=replicas_of(place),
        pickles=pickles,
        images=images,
    )
    if kv_tokens is not None:
        held = ps.Pool(service_name("kv", name or source.name), max(kv_tokens, 1) * replicas_of(place))
        options = {**options, "needs": {held: tokens_held, **(options.get("needs") or {})}}
    service = ps.service(
        writer,
        name=service_name("chat", name or source.name),
        batch=ps.Slots(slots, stretch=stretch, budget=budget, cost=tokens_read, item_cost=WRITTEN),
        on=place,
        **{"progress_timeout": PATIENCE, "buffer": AHEAD, **options},
    )
    return ChatModel(
        name=name or source.name,
        generate=service,
        tokenizer=tokenizer,
        context=config.context,
        stops=config.stops,
        features=_features(images, config.stops),
        max_tokens=max_tokens,
        cache_bytes=cache_bytes,
        defaults=config.recommended if defaults is None else defaults,
    )


def _features(images: bool, stops: frozenset[int]) -> frozenset[Feature]:
    found = set(FEATURES)
    if images:
        found.add("images")
    if stops and find_spec("llguidance") is not None:
        found.add("json")
    return frozenset(found)


def _place(source: Source, on: Place | None, device: str | None) -> Place:
    place = placed(source, source.config, "torch", on)[1]
    if device is None:
        return place
    if on is None and isinstance(place, ps.Process):
        place = replace(place, device=None)
    if not isinstance(place, ps.Process) or place.device:
        raise ConfigError(f"device={device!r} is a child process's: leave out on=, or give on=ps.Process(device={device!r})")
    return replace(place, device=device)
