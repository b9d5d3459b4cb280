"""Bare bodies, for tests of executors without a runtime; child processes import them."""

from __future__ import annotations

from collections.abc import Iterator


def spin(n: int) -> int:
    for _ in range(n * 50):
        pass
    return n


def same(xs: list[int]) -> list[int]:
    return list(xs)


def count(n: int) -> Iterator[int]:
    yield from range(n)


class Spinner:
    def __call__(self, n: int) -> int:
        return spin(n)
