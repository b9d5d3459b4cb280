"""The official `openai` package for JavaScript, unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from speaking import vector

from .conftest import Served

SCRIPT = Path(__file__).parent / "openai_client.mjs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    found = tmp_path_factory.mktemp("javascript")
    (found / "package.json").write_text('{"private": true, "type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "openai@7"]
    installed = subprocess.run(command, cwd=found, capture_output=True, text=True, timeout=180)
    if installed.returncode:
        pytest.skip(f"npm cannot install it: {installed.stderr[-500:]}")
    shutil.copy(SCRIPT, found)
    return found


def test_it_works_unchanged(server: Served, folder: Path) -> None:
    command = ["node", SCRIPT.name, server.base, server.key, server.limited["javascript"]]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["chat"] == found["stream"] == found["final"] == "Grüße, 🦜!"
    assert found["usage"]["completion_tokens"] == len("Grüße, 🦜!".encode()) + 1
    assert (found["completion"], found["response"]) == ("yes", "hello")
    assert found["vectors"] == [pytest.approx(vector("a")), pytest.approx(vector("b"))]
    assert found["models"] == ["parrot", "vectors", "scores"]
    assert found["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found"],
        "key": ["AuthenticationError", 401, "invalid_api_key"],
        "long": ["BadRequestError", 400, "context_length_exceeded"],
        "rate": ["RateLimitError", 429, "rate_limit_exceeded"],
    }
