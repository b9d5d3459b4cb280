"""Texts as tokens, in the worker that runs the model: never on the loop, and many at once.

What is longer than the model reads is cut, and how much was cut is told. A list of token ids is taken as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from penstock.engines.tokenizer import FolderTokenizer
from penstock.errors import InvalidRequest


class Tokens(NamedTuple):
    """A text's tokens, as many as are read; how many more there were; how many of them are a prompt's."""

    ids: list[int]
    cut: int = 0
    prompt: int = 0


def estimated_tokens(text: str | Sequence[int]) -> float:
    """Tokens of a text by its bytes alone (about 100 ns): about four in most writing."""
    if not isinstance(text, str):
        return len(text)
    return 2.0 + (len(text) if text.isascii() else len(text.encode(errors="replace"))) / 4.0


def readable(text: str) -> str:
    """A text that a tokenizer can read: half of a surrogate pair, which is no character, becomes "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def load_tokenizer(folder: Path, transformers: bool) -> Any:
    """The `tokenizers.Tokenizer` of a folder, without padding and truncation; as transformers sets it up, if that runs it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a replica has its threads; the server runs the replicas
    if transformers or not (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def folder_tokenizer(folder: Path) -> FolderTokenizer | None:
    """The same for the serving process, which counts and shows tokens; None if the folder or this process lacks one."""
    there = (folder / "tokenizer.json").is_file() and find_spec("tokenizers") is not None
    return FolderTokenizer(folder) if there else None


class Reader:
    """Reads texts for a model that takes `limit` tokens of each and knows `vocabulary` of them."""

    def __init__(
        self, tokenizer: Any, limit: int, vocabulary: int, lower: bool, prompts: Mapping[str, str], default: str
    ) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.vocabulary = vocabulary
        self.lower = lower
        self.prompts = {"": prompts.get(default, ""), **prompts}
        self.lengths = {name: self._prompt_length(text) for name, text in self.prompts.items()}

    def read(self, texts: Sequence[str | Sequence[int]], prompts: Sequence[str]) -> list[Tokens | InvalidRequest]:
        found: list[Tokens | InvalidRequest] = [_NOTHING] * len(texts)
        places, written = [], []
        for n, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            if prompt not in self.prompts:
                known = ", ".join(sorted(name for name in self.prompts if name)) or "none"
                found[n] = InvalidRequest(f"there is no prompt {prompt!r}; this model has: {known}")
            elif isinstance(text, str):
                places.append(n)
                whole = self.prompts[prompt] + readable(text)
                written.append(whole.lower() if self.lower else whole)
            else:
                found[n] = self._given(text)
        for n, encoding in zip(places, self.tokenizer.encode_batch_fast(written), strict=True):
            found[n] = self._written(encoding, self.lengths[prompts[n]])
        return found

    def _written(self, encoding: Any, prompt: int) -> Tokens | InvalidRequest:
        ids: list[int] = encoding.ids
        if not ids:
            return InvalidRequest("the text has no tokens")
        cut = max(0, len(ids) - self.limit)
        if cut:  # what the model wants behind a text stays behind it
            mask = encoding.special_tokens_mask
            behind = next((n for n, mark in enumerate(reversed(mask)) if not mark), 0)
            ids = ids[: self.limit - behind] + ids[len(ids) - behind :]
        return Tokens(ids, cut, min(prompt, len(ids) - 1))

    def _given(self, ids: Sequence[int]) -> Tokens | InvalidRequest:
        if not ids:
            return InvalidRequest("the list of token ids is empty")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            return InvalidRequest(f"token ids are 0 to {self.vocabulary - 1} for this model, not {min(ids)} to {max(ids)}")
        return Tokens(list(ids[: self.limit]), max(0, len(ids) - self.limit))

    def _prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt and of what comes before it."""
        if not prompt:
            return 0
        mask = self.tokenizer.encode(prompt).special_tokens_mask
        return len(mask) - next((n for n, mark in enumerate(reversed(mask)) if not mark), 0)


_NOTHING = Tokens([])
