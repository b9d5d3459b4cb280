"""curl, as the README has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from .conftest import Served

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(server: Served, path: str, body: Any = None, *options: str, key: str | None = None) -> str:
    command = ["curl", "-sS", "-N", server.url + path, "-H", f"Authorization: Bearer {key or server.key}", *options]
    if body is not None:
        given = body if isinstance(body, str) else json.dumps(body)
        command += ["-H", "Content-Type: application/json", "-d", given]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_chats_streams_vectors_and_ranks(server: Served) -> None:
    ask = {"model": "parrot", "messages": [{"role": "user", "content": "hello"}]}
    assert json.loads(curl(server, "/v1/chat/completions", ask))["choices"][0]["message"]["content"] == "hello"
    rows = curl(server, "/v1/chat/completions", {**ask, "stream": True}).strip().split("\n\n")
    assert rows[-1] == "data: [DONE]"
    assert "".join(json.loads(row[6:])["choices"][0]["delta"].get("content") or "" for row in rows[:-1]) == "hello"
    assert len(json.loads(curl(server, "/v1/embeddings", {"model": "vectors", "input": "a"}))["data"][0]["embedding"]) == 8
    ranked = json.loads(curl(server, "/rerank", {"query": "a b", "texts": ["x", "a b"]}))
    assert [each["index"] for each in ranked] == [1, 0]
    assert json.loads(curl(server, "/tokenize", {"model": "parrot", "prompt": "hi"}))["count"] == 3


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("{", 400, ""),
        ("[]", 400, ""),
        ({"model": "parrot"}, 400, "messages"),
        ({"model": "parrot", "messages": []}, 400, "messages"),
        ({"model": "parrot", "messages": [{"role": "user", "content": 5}]}, 400, "content"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "nobody"}, 404, "nobody"),
    ],
)
def test_what_is_wrong_is_said_in_openais_form(server: Served, body: Any, status: int, said: str) -> None:
    text, _, code = curl(server, "/v1/chat/completions", body, "-w", "\n%{http_code}").rpartition("\n")
    error = json.loads(text)["error"]
    assert int(code) == status and said in error["message"] + str(error["param"]) and error["type"] == "invalid_request_error"


def test_a_wrong_key_and_a_wrong_method(server: Served) -> None:
    text, _, code = curl(server, "/v1/models", None, "-w", "\n%{http_code}", key="wrong").rpartition("\n")
    assert code == "401" and "error" in json.loads(text)
    assert curl(server, "/v1/chat/completions", None, "-w", "\n%{http_code}").endswith("\n405")
