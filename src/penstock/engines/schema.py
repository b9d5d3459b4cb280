"""Answers held to a JSON schema, by llguidance: before each token, which ones may follow; the others' logits go.

Beneath it are derivatives of regular expressions and an Earley parser, over the same vocabulary as the model's
(Microsoft's llguidance; the idea is from Willard and Louf, 2023). Keys and values are separated as `json.dumps` does:
where any amount of white space may come, a model that is held to a schema can go on with that for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.errors import InvalidRequest, ServiceError

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Schemas:
    """What a tokenizer's tokens can say, from which the grammar of each schema is made."""

    def __init__(self, folder: Path, vocabulary: int, stops: frozenset[int]) -> None:
        from llguidance import LLTokenizer
        from tokenizers import Tokenizer

        library = Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.no_padding()
        library.no_truncation()
        self.tokens = LLTokenizer(library.to_str(), n_vocab=vocabulary, eos_token=sorted(stops))

    def hold(self, schema: Any) -> Held:
        """One answer's. Raises InvalidRequest for what is no schema, or one that cannot be followed."""
        from llguidance import LLMatcher

        if not isinstance(schema, dict):
            raise InvalidRequest("schema: an object")
        try:
            text = json.dumps(schema or {"type": "object"})
            matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_json_schema(text, overrides=SPACING), log_level=0)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"the schema cannot be followed: {error}") from None
        if matcher.is_error():
            raise InvalidRequest(f"the schema cannot be followed: {matcher.get_error()}")
        return Held(matcher)


class Held:
    """Where one answer is in its grammar."""

    __slots__ = ("matcher",)

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def narrow(self, logits: torch.Tensor) -> ServiceError | None:
        """Leave only what may follow, in place [vocabulary]; or say why nothing can."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        if self.matcher.is_error():
            return ServiceError(f"the schema cannot be followed further: {self.matcher.get_error()}")
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[0]].astype(bool)
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)
        return None

    def note(self, token: int) -> None:
        """This one was written."""
        self.matcher.consume_token(token)
