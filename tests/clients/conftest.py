"""A real `penstock serve` with tokens, for clients that know nothing of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import environment, served

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Served:
    """Where it is, a key without a quota, and for each test that wants one a key that may call once in a long while."""

    url: str
    key: str
    limited: dict[str, str]

    @property
    def base(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("clients") / "tokens.json"

    def token(*options: str) -> str:
        command = [sys.executable, "-m", "penstock", "token", "add", *options, "--file", str(file)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.strip()

    key = token("anybody")
    limited = {name: token(name, "--rate", "0.001", "--burst", "1") for name in ("python", "javascript")}
    with served("speaking_app:app", "--tokens", str(file), cwd=TESTS) as (_, url):
        assert re.fullmatch(r"pst_\S+", key)
        yield Served(url, key, limited)
