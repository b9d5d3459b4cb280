"""How the command line names models."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli.models import split


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("Qwen/Qwen3-0.6B", (None, "Qwen/Qwen3-0.6B")),
        ("small=Qwen/Qwen3-0.6B", ("small", "Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B=/data/qwen", ("Qwen/Qwen3-0.6B", "/data/qwen")),
        ("a=http://host:1/v1?x=y#m", ("a", "http://host:1/v1?x=y#m")),
        ("http://host:1/v1?x=y", (None, "http://host:1/v1?x=y")),
        ("/data/a=b/model", (None, "/data/a=b/model")),
        ("./a=b", (None, "./a=b")),
        ("~/a=b", (None, "~/a=b")),
        ("a=~/b=c", ("a", "~/b=c")),
        ("C:\\a=b", (None, "C:\\a=b")),
        ("=a", (None, "=a")),
        ("a=", (None, "a=")),
    ],
)
def test_a_name_before_a_model(spec: str, found: tuple[str | None, str]) -> None:
    assert split(spec) == found


def test_a_folder_that_is_there_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "lr=1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert split("runs/lr=1") == (None, "runs/lr=1")
    assert split("runs/lr=2") == ("runs/lr", "2")
