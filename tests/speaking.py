"""Small models that are quick and whose answers can be foretold: bytes are tokens, and a parrot says what it was told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import penstock as ps
from penstock.errors import InvalidRequest
from penstock.models import ChatModel, Embedding, EmbeddingModel, Incremental, Score, ScoreModel, Token

END_OF_TURN, START = 256, 257
SIZE = 8


class Bytes:
    """A tokenizer whose tokens are bytes, so that characters are many tokens."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return ([START] if special else []) + list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<end>"

    def decoder(self) -> Incremental:
        return Incremental(self.decode)

    def chat(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> list[int]:
        if options.get("refuse"):
            raise InvalidRequest("the template takes no such conversation")
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return [START, *text.encode()]


class Parrot:
    """Says the last line that it was told, byte by byte, then ends its turn."""

    def __init__(self) -> None:
        self.left: dict[int, list[int]] = {}
        self.sampling: dict[int, Any] = {}
        self.dropped = 0

    def add(self, slot: int, prompt: list[int], sampling: dict[str, Any], images: list[bytes]) -> int:
        text = bytes(i for i in prompt if i < 256)
        last = text.rstrip(b"\n").rpartition(b"\n")[2].partition(b": ")
        said = last[2] if last[1] else last[0]
        if said == b"refuse":
            raise InvalidRequest("this is not answered")
        if said.startswith(b"break"):
            self.left[slot] = [ord("x"), -1]
        else:
            turn = [*said, END_OF_TURN]
            self.left[slot] = turn if not sampling.get("ignore_eos") else turn * sampling["max_tokens"]
        self.left[slot] = self.left[slot][: sampling["max_tokens"]]
        self.sampling[slot] = sampling
        return len(prompt)

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        out: list[tuple[int, Any]] = []
        for slot, units in slots.items():
            if units > 1 or not self.left[slot]:
                out.append((slot, ps.END)) if not self.left[slot] else None
                continue
            token = self.left[slot].pop(0)
            if token < 0:
                raise ValueError("the model is broken")
            top = self.sampling[slot].get("logprobs")
            out.append((slot, token if top is None else Token(token, -0.5, tuple((token, -0.5) for _ in range(top)))))
            if not self.left[slot]:
                out.append((slot, ps.END))
        return out

    def drop(self, slot: int) -> None:
        del self.left[slot], self.sampling[slot]
        self.dropped += 1


def parrot(name: str = "parrot", context: int = 200, slots: int = 4, cache_bytes: int = 0, **options: Any) -> ChatModel:
    service = ps.service(Parrot, name=f"chat-{name}", batch=ps.Slots(slots), on=ps.Thread(), **options)
    features = frozenset({"logprobs", "seed"})
    return ChatModel(
        name=name,
        generate=service,
        tokenizer=Bytes(),
        context=context,
        stops=frozenset({END_OF_TURN}),
        features=features,
        cache_bytes=cache_bytes,
    )


def vector(text: str) -> list[float]:
    """A unit vector that only this text has."""
    digest = hashlib.sha256(text.encode()).digest()[:SIZE]
    length = sum(b * b for b in digest) ** 0.5
    return [b / length for b in digest]


LONGEST = 50  # tokens that the embedder and the scorer read


def embedder(name: str = "vectors", **options: Any) -> EmbeddingModel:
    def embed(texts: list[Any]) -> list[Any]:
        out: list[Any] = []
        for text in texts:
            text = text if isinstance(text, str) else Bytes().decode(text)
            if text == "break":
                out.append(ValueError("the model is broken"))
                continue
            tokens = len(text.encode())
            out.append(Embedding(vector(text), min(tokens, LONGEST), max(0, tokens - LONGEST)))
        return out

    service = ps.service(embed, name=f"embed-{name}", batch=ps.Batch(max_size=16), **options)
    return EmbeddingModel(name=name, embed=service, dimensions=SIZE, max_tokens=LONGEST, tokenizer=Bytes(), shorten=True)


def scorer(name: str = "scores") -> ScoreModel:
    """The share of the query's words that a document has."""

    def score(queries: list[str], documents: list[str]) -> list[Score]:
        out = []
        for query, document in zip(queries, documents, strict=True):
            words = query.split()
            value = sum(word in document.split() for word in words) / max(1, len(words))
            tokens = len(document.encode())
            out.append(Score(value, min(tokens, LONGEST), max(0, tokens - LONGEST)))
        return out

    service = ps.service(score, name=f"score-{name}", batch=ps.Batch(max_size=16))
    return ScoreModel(name=name, score=service, max_tokens=LONGEST, tokenizer=Bytes(), raw=lambda s: 10 * s)
