"""Where a model's files are: folders, the hub's cache, and what is said when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.engines.source import locate
from penstock.errors import ConfigError

EMPTY = b"\x02" + bytes(7) + b"{}"  # safetensors without a tensor


def make(folder: Path, *files: str, config: str = '{"model_type": "bert"}') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    for name in files:
        (folder / name).write_bytes(EMPTY)
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    source = locate(make(tmp_path / "mine", "model.safetensors"))
    assert (source.name, source.folder) == ("mine", tmp_path / "mine")
    assert source.weights == (tmp_path / "mine" / "model.safetensors",)
    assert source.config == {"model_type": "bert"}
    assert (source.json("none.json"), source.json("none.json", 3)) == (None, 3)
    assert locate(str(tmp_path / "mine")) == source


def test_weights_in_parts_are_all_there_or_named(tmp_path: Path) -> None:
    folder = make(tmp_path, "a.safetensors")
    weight_map = {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"lacks b\.safetensors in .*download did not end"):
        locate(folder)
    (folder / "b.safetensors").write_bytes(EMPTY)
    assert [path.name for path in locate(folder).weights] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        EMPTY[:-1],
        EMPTY + b"x",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        b"\x04" + bytes(7) + b"[12]",
        b"\x19" + bytes(7) + b'{"a":{"data_offsets":[0]}}',
        b"\x1b" + bytes(7) + b'{"a":{"data_offsets":[0,9]}}' + bytes(8),
    ],
)
def test_weights_that_are_cut_off_are_seen_before_anything_is_started(tmp_path: Path, content: bytes) -> None:
    folder = make(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file, or not all of one"):
        locate(folder)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    folder = make(tmp_path, "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        locate(folder)


def test_pickles_are_for_those_who_ask(tmp_path: Path) -> None:
    folder = make(tmp_path, "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pickled weights.*pickles=True"):
        locate(folder)
    assert locate(folder, pickles=True).weights == (folder / "pytorch_model.bin",)
    (folder / "model.safetensors").write_bytes(EMPTY)
    assert locate(folder, pickles=True).weights == (folder / "model.safetensors",)


def test_what_is_missing_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder '/.*/nothing'"):
        locate(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"there is no folder '/.*/nothing'"):
        locate("./nothing")
    with pytest.raises(ConfigError, match=r"has no weights in .*: looked for model\.safetensors"):
        locate(make(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        _ = locate(make(tmp_path / "broken", "model.safetensors", config="{")).config


HUB = "from penstock.engines.source import locate; import sys; print(locate(sys.argv[1]).folder)"


def ask(name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its environment once."""
    from served import environment

    env = {**environment(), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", HUB, name], capture_output=True, text=True, env=env, timeout=60)


def test_without_a_network_the_cache_serves_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    told = ask("some-one/some-model", tmp_path).stderr.splitlines()[-1]
    assert "model 'some-one/some-model' is no folder" in told
    assert f"not whole in the hub's cache ({tmp_path})" in told
    assert "HF_HUB_OFFLINE is set" in told and "hf download some-one/some-model" in told
    kept = tmp_path / "models--some-one--some-model"
    make(kept / "snapshots" / ("a" * 40), "model.safetensors")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    found = ask("some-one/some-model", tmp_path)
    assert found.stdout.strip() == str(kept / "snapshots" / ("a" * 40)), found.stderr
    assert "no name on the hub" in ask("some-one/a..b", tmp_path).stderr


def test_without_the_hubs_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface-hub"):
        locate("some-one/some-model")
