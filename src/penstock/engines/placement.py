"""Where a model runs, on which engine, and what its service is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import penstock as ps
from penstock.engines.source import Source
from penstock.errors import ConfigError

Engine = Literal["auto", "onnx", "torch"]
Place = ps.Thread | ps.Process
GPUS = Path("/proc/driver/nvidia/gpus")  # a folder each, where the driver is loaded
_GRAPH = (2 << 30) - (16 << 20)  # bytes of one protocol buffer, less those that are no weights
_LOADING = 600.0  # seconds that a large model may take to load
_ONNX = ("onnxruntime", "onnx", "tokenizers", "numpy")
_TORCH = ("torch", "transformers", "numpy")
_PACKED = ("bert", "roberta", "xlm-roberta", "camembert")


def service_name(kind: str, name: str) -> str:
    """What the service is called that does this ("chat") with the model of this name: its last part, in allowed letters."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name.rpartition('/')[2])}"


def placed(source: Source, config: Mapping[str, Any], engine: str, on: Place | None) -> tuple[str, Place]:
    """The engine and the place: as asked for, else the first GPU, else the processor.

    There it is a thread for onnxruntime, which leaves the GIL alone, and a child process for torch, where Python runs
    between kernels.
    """
    if on is None and engine != "onnx" and next(GPUS.glob("*"), None) and not _missing(_TORCH):
        on = ps.Process(device="cuda:0", startup_timeout=_LOADING)
    chosen = choose_engine(source, config, engine, on)
    return chosen, on or (ps.Thread(1) if chosen == "onnx" else ps.Process(startup_timeout=_LOADING))


def targets(ttft: float | None, tpot: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with a limit that keeps these targets, in seconds, if there are any. Raises ConfigError."""
    if ttft is None and tpot is None:
        return dict(options)
    if "limit" in options:
        raise ConfigError("chat(limit=...) and targets: give limit=ps.AIMD(ttft=..., tpot=...) or the targets")
    return {**options, "limit": ps.AIMD(ttft=ttft, tpot=tpot)}


def batch_of(cost: Callable[[Sequence[Any]], float], on: Place) -> ps.Batch:
    """How calls run together, whose cost in tokens `cost` tells.

    On a processor nothing is won beyond a thousand tokens, and who comes next would wait for them; a GPU wants many. There
    is nothing to learn: a worker cuts its batch into runs by the true lengths, so a larger one is never worse.
    """
    if device_of(on) == "cpu":
        return ps.Batch(max_size=64, cost=cost, max_cost=1024, learn=False)
    return ps.Batch(max_size=256, cost=cost, max_cost=32768, learn=False)


def device_of(on: Place | None) -> str:
    """The first of its devices; "cpu" where none is named."""
    return str(next(iter(on.device or ("cpu",)))) if isinstance(on, ps.Process) else "cpu"


def replicas_of(on: Place) -> int:
    """How many there may be, to share the cores among them."""
    if isinstance(on.replicas, int):
        return on.replicas
    return 1 if on.replicas is None else on.replicas.maximum


def suits_packing(config: Mapping[str, Any]) -> bool:
    """Whether the packed graph is made for this model: BERT, and those that differ from it in their positions alone."""
    return (
        config.get("model_type") in _PACKED
        and config.get("position_embedding_type", "absolute") == "absolute"
        and config.get("hidden_act", "gelu") == "gelu"
        and not config.get("is_decoder")
    )


def choose_engine(source: Source, config: Mapping[str, Any], engine: str, on: Place | None) -> str:
    """The packed engine for what it is made for, unless a GPU is asked for or it is not installed; else torch."""
    suited = suits_packing(config) and _fits_graph(source, config)
    if engine not in ("auto", "onnx", "torch"):
        raise ConfigError(f"engine={engine!r}: auto, onnx or torch")
    if engine == "onnx" and not suited:
        raise ConfigError(f'{source.name!r} is no BERT-like encoder in safetensors of less than 2 GiB: engine="torch"')
    if engine == "onnx" or (engine == "auto" and suited and device_of(on) == "cpu"):
        missing = _missing(_ONNX)
        if not missing:
            return "onnx"
        if engine == "onnx" or _missing(_TORCH):
            raise ConfigError(f"{source.name!r} needs {', '.join(missing)}: pip install 'penstock[onnx]'")
    if _missing(_TORCH):
        raise ConfigError(f"{source.name!r} needs {', '.join(_missing(_TORCH))}: pip install 'penstock[transformers]'")
    return "torch"


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def _fits_graph(source: Source, config: Mapping[str, Any]) -> bool:
    """Whether the weights, as float32, fit into one ONNX graph."""
    if any(path.suffix != ".safetensors" for path in source.weights):
        return False
    halves = str(config.get("dtype") or config.get("torch_dtype")) in ("float16", "bfloat16")
    return sum(path.stat().st_size for path in source.weights) * (2 if halves else 1) < _GRAPH
