"""What a checkpoint lacks is said, and never made up: transformers would fill it with random numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

for needed in ("transformers", "onnx", "onnxruntime", "tokenizers"):
    pytest.importorskip(needed)
pytest.importorskip("torch")

import tiny
from safetensors.torch import load_file, save_file

from penstock.engines.embedding import Embedder
from penstock.engines.embedding_config import read_config
from penstock.engines.source import locate
from penstock.engines.torch_model import load
from penstock.errors import ConfigError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("encoder"), head=True)


def without(model: Path, to: Path, *named: str) -> Path:
    """The model, less the weights whose name has one of these words."""
    shutil.copytree(model, to)
    weights = load_file(model / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not any(word in name for word in named)}
    assert len(kept) < len(weights)
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_head_that_is_not_there(encoder: Path, tmp_path: Path) -> None:
    folder = without(encoder, tmp_path / "headless", "classifier")
    with pytest.raises(ConfigError, match=r"headless lacks weights of BertForSeq.*: classifier\.bias, classifier\.weight$"):
        load("AutoModelForSequenceClassification", folder, threads=1, dtype=None, pickles=False)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_layer_that_is_not_there(encoder: Path, tmp_path: Path, engine: str) -> None:
    source = locate(without(encoder, tmp_path / "cut", "layer.1.output"))
    with pytest.raises(ConfigError, match=r"cut lacks weights of .*layer\.1\.output"):
        Embedder(source, read_config(source), engine, 1, None, False)


def test_what_an_encoder_has_no_use_for_may_be_missing(encoder: Path, tmp_path: Path) -> None:
    source = locate(without(encoder, tmp_path / "bare", "pooler", "classifier"))
    Embedder(source, read_config(source), "torch", 1, None, False)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = tiny.causal(tmp_path / "wide", head=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ConfigError, match=r"wide lacks weights of Qwen3ForCausalLM: model\.layers\.0\.mlp.* and \d+ more"):
        load("AutoModelForCausalLM", folder, threads=1, dtype=None, pickles=False)
