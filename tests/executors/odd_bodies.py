"""Bodies that answer and raise what hardly can be passed on, in every place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import penstock as ps


class Mute(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Short:
    """Says that it has three items, and has two."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter((0, 1))


class Sealed:
    """Says how many items it has, and gives none."""

    def __len__(self) -> int:
        return 3


ITEMS: dict[str, Any] = {
    "StopIteration": StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration(1),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "SystemExit": SystemExit(3),
    "GeneratorExit": GeneratorExit(),
    "Mute": Mute(),
}
WHOLE: dict[str, Any] = {"Short": Short(), "Sealed": Sealed()}


def odd(how: list[str]) -> Any:
    if how[0] == "raise":
        raise Mute
    return WHOLE[how[0]] if how[0] in WHOLE else [ITEMS.get(each, each) for each in how]


def one(how: str) -> Any:
    return ITEMS.get(how, how)


async def odd_async(how: list[str]) -> Any:
    return odd(how)


# A batch of three is released when it is full.
_THREE = ps.Batch(max_size=3, max_wait=0.5, learn=False)
in_thread = ps.service(odd, name="in_thread", batch=_THREE)
on_loop = ps.service(odd_async, name="on_loop", batch=_THREE)
in_process = ps.service(odd, name="in_process", batch=_THREE, on=ps.Process())
one_in_thread = ps.service(one, name="one_in_thread")
one_in_process = ps.service(one, name="one_in_process", on=ps.Process())
