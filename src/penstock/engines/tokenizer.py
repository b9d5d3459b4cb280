"""A model folder's tokenizer, by the `tokenizers` library alone: the process that serves never loads torch.

Decoding is ours, because streams need it token by token. Almost every language model's tokens stand for bytes, either
all of them (byte-level BPE) or where there is no word for a character (SentencePiece with byte fallback). There, the
text of an answer is its bytes read as UTF-8, where what is no character becomes U+FFFD (Unicode 3.9, maximal subparts);
so pieces and the whole are equal by construction, at a dictionary's price a token. Other tokenizers decode with the
library, a few tokens at a time (`penstock.models.Incremental`).
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.engines.template import ChatTemplate
from penstock.errors import ConfigError
from penstock.models import Decoder, Incremental

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
NONE = b""


class FolderTokenizer:
    """The `penstock.models.Tokenizer` of a model folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError("chat models need the tokenizers package: pip install 'penstock[transformers]'") from None
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"{self.folder} has no tokenizer.json; transformers' AutoTokenizer can write one: save_pretrained()"
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time needs no threads of the library's own
        try:
            self.library = Tokenizer.from_file(str(file))
        except Exception as error:  # the library's own kind is Exception itself
            raise ConfigError(f"{file} cannot be read: {error}") from None
        self.library.no_padding()  # what a training run left in the file would cut prompts silently
        self.library.no_truncation()
        self.config = read_json(self.folder / "tokenizer_config.json")
        self.template = ChatTemplate.of_folder(self.folder, self.config)
        self._pieces, self._strip = _byte_pieces(self.library, json.loads(self.library.to_str()).get("decoder"))
        added = self.library.get_added_tokens_decoder()
        self.special = frozenset(number for number, token in added.items() if token.special)
        self._readable = {token: NONE if token in self.special else piece for token, piece in self._pieces.items()}

    @property
    def size(self) -> int:
        """How many tokens there are."""
        size: int = self.library.get_vocab_size(with_added_tokens=True)
        return size

    def id(self, token: str) -> int | None:
        """The number of the token that is written so."""
        found: int | None = self.library.token_to_id(token)
        return found

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """As a batch of one: the library's `encode` keeps the GIL, and a text of megabytes would hold up everybody."""
        ids: list[int] = self.library.encode_batch_fast([text], add_special_tokens=special)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        if not self._readable:
            return self._decode(ids)
        return _strip(b"".join(map(self._bytes, ids)).decode("utf-8", "replace"), self._strip)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.library.decode([token for token in ids if token >= 0], skip_special_tokens=True)
        return text

    def _bytes(self, token: int) -> bytes:
        return self._readable.get(token, NONE)

    def piece(self, token: int) -> bytes:
        if self._pieces:
            return self._pieces.get(token, NONE)
        text: str | None = self.library.id_to_token(token) if token >= 0 else None
        return (text or "").encode()

    def decoder(self) -> Decoder:
        if self._readable:
            return BytesDecoder(self._readable, self._strip)
        return WordsDecoder(self._decode, self.special)

    def chat(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> list[int]:
        """The template writes the special tokens itself, so none are added here."""
        return self.encode(self.template.render(messages, options), special=False)


class BytesDecoder:
    """Tokens' bytes as UTF-8, piece by piece; with `strip` a space at the very beginning goes (SentencePiece's)."""

    __slots__ = ("_feed", "_pieces", "_strip")

    def __init__(self, pieces: Mapping[int, bytes], strip: bool) -> None:
        self._pieces = pieces
        self._strip = strip
        self._feed = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        text = self._feed(self._pieces.get(token, NONE))
        return self._begin(text) if self._strip and text else text

    def flush(self) -> str:
        text = self._feed(NONE, True)
        return self._begin(text) if self._strip and text else text

    def _begin(self, text: str) -> str:
        self._strip = False
        return _strip(text, True)


class WordsDecoder(Incremental):
    """For tokens that are no bytes: those that are not written are no context for the next one either."""

    __slots__ = ("special",)

    def __init__(self, decode: Callable[[Sequence[int]], str], special: frozenset[int]) -> None:
        super().__init__(decode)
        self.special = special

    def push(self, token: int) -> str:
        return "" if token in self.special else super().push(token)


def read_json(file: Path) -> dict[str, Any]:
    """A file's object; {} if there is none. Raises ConfigError for what is no object."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: not a JSON object")
    return found


def _strip(text: str, strip: bool) -> str:
    return text[1:] if strip and text.startswith(" ") else text


def _byte_pieces(library: Any, decoder: dict[str, Any] | None) -> tuple[dict[int, bytes], bool]:
    """The bytes of every token, and whether a space at the beginning is left out; {} if its tokens are not bytes."""
    parts = _parts(decoder)
    kinds = [part.get("type") for part in parts]
    vocabulary: dict[str, int] = library.get_vocab(with_added_tokens=True)
    if kinds == ["ByteLevel"]:
        letters = {letter: byte for byte, letter in byte_letters().items()}
        return {number: _byte_level(token, letters) for token, number in vocabulary.items()}, False
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and _only_strips_a_space(parts[3:]):
        replaced = parts[0]["pattern"].get("String")
        if replaced:
            with_ = parts[0]["content"]
            return {number: _fallback(token, replaced, with_) for token, number in vocabulary.items()}, len(parts) == 4
    return {}, False


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    inner: list[dict[str, Any]] | None = decoder.get("decoders")
    return [decoder] if inner is None else inner


def _only_strips_a_space(parts: list[dict[str, Any]]) -> bool:
    return not parts or parts == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]


def byte_letters() -> dict[int, str]:
    """Byte-level BPE's alphabet (GPT-2): bytes that print stand for themselves, others for the letters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others: Iterable[int] = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def _byte_level(token: str, letters: Mapping[str, int]) -> bytes:
    """A token with a letter that is none of the alphabet's was added as text, and is meant literally."""
    try:
        return bytes(letters[letter] for letter in token)
    except KeyError:
        return token.encode()


def _fallback(token: str, replaced: str, by: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(replaced, by).encode()
