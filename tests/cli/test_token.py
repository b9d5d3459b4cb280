"""`penstock token`, and `penstock serve` with the tokens that it made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from served import Child, environment, served

APP = """
import penstock as ps

@ps.service
async def hello(name: str) -> str:
    return f"Hello, {name}!"

app = ps.App(hello)
"""


def penstock(*arguments: str, cwd: Path, token: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *arguments]
    variables = {**environment(), "PENSTOCK_TOKEN": token}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_made_used_and_removed(tmp_path: Path) -> None:
    (tmp_path / "hi.py").write_text(APP)
    made = penstock("token", "add", "ada", "--tenant", "acme", "--weight", "2", "--rpm", "6000", "--tpm", "9000", cwd=tmp_path)
    token = made.stdout.strip()
    assert made.returncode == 0 and token.startswith("pst_"), made.stderr
    operator = penstock("token", "add", "ops", "--operator", cwd=tmp_path).stdout.strip()
    listed = penstock("token", "list", cwd=tmp_path).stdout
    assert "tenant acme (weight 2, 100 calls/s, 9000 tokens/min)" in listed and "operator" in listed and token not in listed
    with served("hi:app", "--tokens", "tokens.json", cwd=tmp_path) as (child, url):
        child.until("need a token of tokens.json")
        assert "401 Unauthorized" in penstock("call", f"{url}/hello", "name=Ada", cwd=tmp_path).stderr
        assert penstock("call", f"{url}/hello", "name=Ada", cwd=tmp_path, token=token).stdout == '"Hello, Ada!"\n'
        from_file = penstock("call", f"{url}/hello", "name=Ada", cwd=tmp_path, token=f" {token}\n")
        assert from_file.stdout == '"Hello, Ada!"\n'
        inside = penstock("call", f"{url}/hello", "name=Ada", cwd=tmp_path, token="a\nb")
        assert "cannot be sent: Invalid header value" in inside.stderr and "Traceback" not in inside.stderr
        assert "404" in penstock("call", f"{url}/no such 服务", cwd=tmp_path, token=token).stderr
        assert "operator's token" in penstock("top", url, "--once", cwd=tmp_path, token=token).stderr
        assert "SERVICE" in penstock("top", url, "--once", "--interval", "0.1", cwd=tmp_path, token=operator).stdout
        load = ("bench", f"{url}/hello", "-d", '{"name": "a"}', "-n", "20", "--baseline", "0")
        assert "200: 20" in penstock(*load, cwd=tmp_path, token=operator).stdout
        assert "401: 20" in penstock(*load, cwd=tmp_path).stdout
    assert penstock("token", "remove", "ada", cwd=tmp_path).returncode == 0
    assert "ada" not in penstock("token", "list", cwd=tmp_path).stdout
    assert "no token named" in penstock("token", "remove", "ada", cwd=tmp_path).stderr
    for wrong in (("--rate", "nan"), ("--rate", "-1"), ("--tpm", "nan"), ("--weight", "nan")):
        refused = penstock("token", "add", "eve", *wrong, cwd=tmp_path).stderr
        assert "greater than 0" in refused and "Traceback" not in refused
    assert "there is no file" in penstock("token", "list", "--file", "nowhere.json", cwd=tmp_path).stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_wants_tokens(tmp_path: Path, host: str) -> None:
    (tmp_path / "hi.py").write_text(APP)
    refused = Child("serve", "hi:app", "--port", "0", "--host", host, cwd=tmp_path)
    try:
        assert refused.end() == 1
        assert "--tokens FILE" in refused.said and "--insecure" in refused.said and "Traceback" not in refused.said
    finally:
        refused.close()


@pytest.mark.parametrize("way", ["--insecure", "--tokens"])
def test_a_public_address_with_tokens_or_forced(tmp_path: Path, way: str) -> None:
    (tmp_path / "hi.py").write_text(APP)
    penstock("token", "add", "ada", cwd=tmp_path)
    more = ["--tokens", "tokens.json"] if way == "--tokens" else [way]
    with served("hi:app", "--host", "0.0.0.0", *more, cwd=tmp_path) as (child, _):
        assert "is up at" in child.said
