"""Where a model's files are: a folder, or a name on the Hugging Face hub that is downloaded into its cache.

Weights are safetensors only: a pickled checkpoint is a program, and loading it runs it. Whoever trusts one says so with
`pickles=True`. Nothing here imports torch or transformers, and the hub's own library only for names that are no folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError

_WANTED = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "*training_args*", "*optimizer*", "*/.git*")


@dataclass(frozen=True)
class Source:
    """A model's files, all there: `name` as it was asked for (of a folder, its last part), and where they are."""

    name: str
    folder: Path
    weights: tuple[Path, ...]

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`; {} for a model without one."""
        found = self.json("config.json")
        return found if isinstance(found, dict) else {}

    def json(self, name: str, default: Any = None) -> Any:
        """What a JSON file of the model says; `default` if there is no such file."""
        path = self.folder / name
        if not path.is_file():
            return default
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None


def locate(model: str | os.PathLike[str], *, revision: str | None = None, pickles: bool = False) -> Source:
    """The files of `model`, a folder or a hub's name such as "Qwen/Qwen3-0.6B"; downloads what is not here yet.

    `revision` is a branch, a tag or a commit of the hub's. Raises ConfigError that says what is missing and where it was
    looked for.
    """
    folder, name = Path(model).expanduser(), os.fspath(model)
    if folder.is_dir():
        name = folder.resolve().name
    elif _is_path(name):
        raise ConfigError(f"there is no folder {str(folder.absolute())!r} with a model")
    else:
        folder = _download(name, revision, pickles)
    weights = _weights(folder, str(model), pickles)
    if not (weights[0].parent / "config.json").is_file():
        raise ConfigError(f"model {str(model)!r} has no config.json in {weights[0].parent}")
    for path in weights:
        if path.suffix == ".safetensors" and not _whole(path):
            raise ConfigError(f"{path} is no safetensors file, or not all of one: its download did not end")
    return Source(name, folder, weights)


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: eight bytes, a JSON header of that length, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError):
            return False


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def _weights(folder: Path, model: str, pickles: bool) -> tuple[Path, ...]:
    """The files with the weights: as the index says, if they are in parts. Older sentence-transformers have a subfolder."""
    folder = next((inner for inner in folder.glob("0_*") if (inner / "config.json").is_file()), folder)
    kinds = [("model", "safetensors"), *([("pytorch_model", "bin")] if pickles else [])]
    for stem, ending in kinds:
        index = folder / f"{stem}.{ending}.index.json"
        whole = folder / f"{stem}.{ending}"
        if index.is_file() and not whole.is_file():
            parts = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise ConfigError(f"model {model!r} lacks {', '.join(missing)} in {folder}: its download did not end")
            return tuple(folder / part for part in parts)
        if whole.is_file():
            return (whole,)
    if not pickles and any(folder.glob("pytorch_model*.bin*")):
        raise ConfigError(
            f"model {model!r} has no safetensors in {folder}, only pickled weights, which can run any code when loaded: "
            "pickles=True if you trust who made them"
        )
    raise ConfigError(f"model {model!r} has no weights in {folder}: looked for model.safetensors and its parts")


def _download(name: str, revision: str | None, pickles: bool) -> Path:
    here = Path(name).absolute()
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise ConfigError(
            f"model {name!r} is no folder ({here}), and to look for it on the hub takes `pip install huggingface-hub`"
        ) from None
    wanted = [*_WANTED, "*.safetensors", *(["*.bin"] if pickles else [])]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    except errors.HFValidationError as error:
        raise ConfigError(f"model {name!r} is no folder ({here}), and no name on the hub: {error}") from None
    except errors.GatedRepoError:
        raise ConfigError(
            f"model {name!r} is for those who accepted its terms: do so at {_page(constants, name)}, and set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"model {name!r} has no revision {revision!r} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"model {name!r} is no folder ({here}), nor on the hub, unless it is private: then set HF_TOKEN"
        ) from None
    except (OSError, errors.HfHubHTTPError) as error:  # with no network: LocalEntryNotFoundError, which is an OSError
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} did not answer"
        if not isinstance(error, errors.LocalEntryNotFoundError):
            why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"model {name!r} is no folder ({here}), is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and cannot be "
            f"downloaded ({why}): give a folder, or fetch it where there is a network with `hf download {name}`"
        ) from None


def _page(constants: Any, name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"
