"""Which engine runs a model, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.engines import placement
from penstock.engines.placement import batch_of, placed, replicas_of, service_name
from penstock.engines.source import Source
from penstock.errors import ConfigError
from penstock.policy import Scale

BERT = {"model_type": "bert"}


def choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: tuple[str, ...] = (), gpus: int = 0, **asked: Any) -> Any:
    """As on a machine that lacks some packages and has some GPUs."""
    monkeypatch.setattr(placement, "find_spec", lambda name: None if name in lacks else name)
    monkeypatch.setattr(placement, "GPUS", tmp_path)
    for n in range(gpus):
        (tmp_path / f"0000:0{n}:00.0").mkdir()
    ending = asked.pop("ending", "safetensors")
    weights = tmp_path.parent / f"{tmp_path.name}.{ending}"
    with weights.open("wb") as file:
        file.truncate(asked.pop("size", 100))  # a hole: no disk is taken
    source = Source("m", tmp_path, (weights,))
    return placed(source, asked.pop("config", BERT), asked.pop("engine", "auto"), asked.pop("on", None))


def test_a_processor_runs_what_is_like_bert_packed_and_the_rest_in_a_child(monkeypatch: Any, tmp_path: Path) -> None:
    assert choose(monkeypatch, tmp_path) == ("onnx", ps.Thread(1))
    for config in ({"model_type": "mpnet"}, BERT | {"hidden_act": "relu"}, BERT | {"position_embedding_type": "relative_key"}):
        engine, on = choose(monkeypatch, tmp_path, config=config)
        assert engine == "torch" and isinstance(on, ps.Process) and on.device == ()
    assert choose(monkeypatch, tmp_path, ending="bin")[0] == "torch"
    assert choose(monkeypatch, tmp_path, lacks=("onnx",))[0] == "torch"
    assert choose(monkeypatch, tmp_path, size=1 << 30)[0] == "onnx"
    assert choose(monkeypatch, tmp_path, size=1 << 30, config=BERT | {"dtype": "bfloat16"})[0] == "torch"
    assert choose(monkeypatch, tmp_path, size=2 << 30)[0] == "torch"
    assert choose(monkeypatch, tmp_path, engine="torch", on=ps.Thread(2)) == ("torch", ps.Thread(2))


def test_a_gpu_is_used_where_there_is_one(monkeypatch: Any, tmp_path: Path) -> None:
    engine, on = choose(monkeypatch, tmp_path, gpus=2)
    assert (engine, on.device, batch_of(sum, on).max_cost) == ("torch", ("cuda:0",), 32768)
    assert choose(monkeypatch, tmp_path, engine="onnx") == ("onnx", ps.Thread(1))
    assert choose(monkeypatch, tmp_path, on=ps.Thread(3)) == ("onnx", ps.Thread(3))
    assert choose(monkeypatch, tmp_path, lacks=("torch",)) == ("onnx", ps.Thread(1))
    assert choose(monkeypatch, tmp_path, on=ps.Process(2, device=["cuda:0", "cuda:1"]))[0] == "torch"


def test_what_is_missing_is_named(monkeypatch: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'penstock\[onnx\]'"):
        choose(monkeypatch, tmp_path, lacks=("onnxruntime", "torch"))
    with pytest.raises(ConfigError, match=r"needs transformers: pip install 'penstock\[transformers\]'"):
        choose(monkeypatch, tmp_path, lacks=("transformers",), config={"model_type": "qwen3"})
    with pytest.raises(ConfigError, match='no BERT-like encoder in safetensors of less than 2 GiB: engine="torch"'):
        choose(monkeypatch, tmp_path, engine="onnx", config={"model_type": "qwen3"})
    with pytest.raises(ConfigError, match="engine='tpu': auto, onnx or torch"):
        choose(monkeypatch, tmp_path, engine="tpu")


def test_names_and_replicas() -> None:
    assert [service_name("chat", name) for name in ("a/B-c.d", "7b model")] == ["chat-B-c.d", "chat-7b-model"]
    assert [replicas_of(on) for on in (ps.Thread(), ps.Thread(3), ps.Process(Scale(1, 4)))] == [1, 3, 4]
