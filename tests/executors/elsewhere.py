"""Bodies for an interpreter that has neither penstock nor anything else of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import penstock as ps
from penstock.errors import InvalidRequest
from penstock.policy import Batch

PYTHON = os.environ.get("PENSTOCK_TEST_PYTHON", sys.executable)
where = ps.Process(1, python=PYTHON)


@ps.service(on=where)
def about(word: str) -> dict[str, object]:
    if word == "wrong":
        raise InvalidRequest("a wrong word")
    if word == "own":
        raise Own("cannot be read over there", 3)
    return {"prefix": sys.prefix, "penstock": "msgspec" in sys.modules, "path": list(sys.path), "word": word}


class Own(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} {code}")


@ps.service(on=where, batch=Batch(max_size=4, max_wait=0.01), admit=ps.Queue(items=100))
def shouts(words: list[str]) -> list[str]:
    return [word.upper() for word in words]


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, n: int) -> Iterator[int]:
        yield from range(self.start, self.start + n)


counter = ps.service(Counter, 5, on=where)


@ps.service(on=where)
def asks(word: str) -> str:
    return str(shouts.submit(word).result()) + "!"


class Repeats:
    """Advances in steps."""

    def __init__(self) -> None:
        self.left: dict[int, list[str]] = {}

    def add(self, slot: int, words: list[str]) -> None:
        self.left[slot] = list(words)

    def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:
        return [(slot, self.left[slot].pop(0) if self.left[slot] else ps.END) for slot in slots]

    def drop(self, slot: int) -> None:
        del self.left[slot]


repeats = ps.service(Repeats, batch=ps.Slots(2), on=where)
app = ps.App(about, shouts, counter, asks, repeats)
