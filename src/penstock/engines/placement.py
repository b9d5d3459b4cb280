"""Where a model runs, on which engine, and what its service is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

import penstock as ps
from penstock.engines.source import Source
from penstock.errors import ConfigError

Engine = Literal["auto", "onnx", "torch"]
Place = ps.Thread | ps.Process
_ONNX = ("onnxruntime", "onnx", "tokenizers", "numpy")
_TORCH = ("torch", "transformers", "numpy")
_PACKED = ("bert", "roberta", "xlm-roberta", "camembert")


def service_name(kind: str, name: str) -> str:
    """What the service is called that does this ("chat") with the model of this name: its last part, in allowed letters."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name.rpartition('/')[2])}"


def default_place(engine: str) -> Place:
    """A thread for onnxruntime, which leaves the GIL alone; a child process for torch, where Python runs between kernels."""
    return ps.Thread(1) if engine == "onnx" else ps.Process(startup_timeout=600.0)


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
    suited = suits_packing(config) and all(path.suffix == ".safetensors" for path in source.weights)
    device = next(iter(on.device or ("cpu",))) if isinstance(on, ps.Process) else "cpu"
    if engine not in ("auto", "onnx", "torch"):
        raise ConfigError(f"engine={engine!r}: auto, onnx or torch")
    if engine == "onnx" and not suited:
        raise ConfigError(f'{source.name!r} is no BERT-like encoder in safetensors: engine="torch"')
    if engine == "onnx" or (engine == "auto" and suited and device == "cpu"):
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
