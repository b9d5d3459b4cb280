"""Chat models over vLLM's asynchronous engine, in a child process with an interpreter of its own.

    model = chat("Qwen/Qwen3-8B", python="/opt/vllm")
    app = ps.App(models=[model])

This process reads the model's configuration and its tokenizer, and never imports vLLM. Queues, limits, fairness and slots are
ours, in front of it: it is given no more requests than it can run, so what waits is ordered here. Requests run beside each
other in one child (`Process(concurrency=...)`), and vLLM batches them (`vllm_engine.py`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import penstock as ps
from penstock.engines.causal_config import read_causal
from penstock.engines.placement import service_name, targets
from penstock.engines.source import locate
from penstock.engines.tokenizer import FolderTokenizer
from penstock.engines.vllm_engine import Engine
from penstock.errors import ConfigError
from penstock.models import ChatModel, Feature, Sampling

FEATURES: frozenset[Feature] = frozenset(("logprobs", "seed", "penalties", "logit_bias", "json"))
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn"}  # a child has threads, so no forks


def chat(
    model: str | os.PathLike[str],
    *,
    name: str | None = None,
    slots: int = 128,
    context: int | None = None,
    engine: Mapping[str, Any] | None = None,
    python: str | os.PathLike[str] | None = None,
    on: ps.Process | None = None,
    defaults: Sampling | None = None,
    max_tokens: int | None = None,
    revision: str | None = None,
    ttft: float | None = None,
    tpot: float | None = None,
    **options: Any,
) -> ChatModel:
    """A chat model over a folder or a hub's name, run by vLLM: `slots` requests at once in each replica.

    `python` is an interpreter or virtual environment that has vLLM (default: this one). `on` says more of where: a
    `ps.Process` with that `python`, and its GPU as `device` (for several, `engine={"tensor_parallel_size": 2}` and
    CUDA_VISIBLE_DEVICES in `env`). `engine` has further arguments of vLLM's `AsyncEngineArgs`. The rest is as in
    `penstock.engines.chat`. Raises ConfigError.
    """
    if python is not None and on is not None:
        raise ConfigError("python= is a child process's: leave out on=, or give on=ps.Process(python=...)")
    source = locate(model, revision=revision)
    config = read_causal(source, context)
    place = on or ps.Process(python=python, startup_timeout=1800.0)
    place = replace(place, concurrency=slots, env={**QUIET, **(place.env or {})})
    arguments = {"max_model_len": config.context, "max_num_seqs": slots, "disable_log_stats": True, **(engine or {})}
    service = ps.service(
        functools.partial(Engine, str(source.folder), sorted(config.stops), arguments),
        name=service_name("chat", name or source.name),
        on=place,
        **targets(ttft, tpot, options),
    )
    return ChatModel(
        name=name or source.name,
        generate=service,
        tokenizer=FolderTokenizer(source.folder),
        context=config.context,
        stops=config.stops,
        features=FEATURES,
        max_tokens=max_tokens,
        defaults=config.recommended if defaults is None else defaults,
    )
