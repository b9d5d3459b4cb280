"""Requests of many parts: each a call, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.http.openai.faults import Rejected
from penstock.http.openai.route import Asked
from penstock.runtime import join
from penstock.service import Service


async def together(asked: Asked, parts: Sequence[tuple[Service[..., Any], tuple[Any, ...]]]) -> Sequence[Any]:
    """What the calls answer, in order: `Embedding`s or `Score`s. If one fails the others are cancelled; its error is raised.

    How many tokens they have shows when they are answered; until then the tenant is charged for what they look like.
    """
    asked.admit(sum(_looks_like(args) for _, args in parts))
    failure: BaseException | None = None
    tokens = 0
    try:
        found: Sequence[Any]
        if len(parts) == 1:
            service, args = parts[0]
            found = [await asked.call(service, *args)]
        else:
            found = await join(*[asked.call(service, *args, alone=False) for service, args in parts])
        tokens = sum(each[1] for each in found)
        return found
    except BaseException as error:
        failure = error
        raise
    finally:
        asked.used(tokens)
        asked.ended(failure)
        del failure


def _looks_like(args: tuple[Any, ...]) -> int:
    """Tokens of texts by their length alone; a list of tokens is as long as it is."""
    return sum(len(each) if isinstance(each, list) else len(each) // 4 + 2 for each in args)


def truncated(found: Sequence[Any], param: str, allowed: bool | None, most: int) -> list[dict[str, int]]:
    """Which texts were cut, and by how much; `found` are `Embedding`s or `Score`s. Raises Rejected if that is not allowed."""
    cut = [{"index": n, "tokens": each[1], "cut": each[2]} for n, each in enumerate(found) if each[2]]
    if cut and allowed is False:
        first = cut[0]
        raise Rejected(
            f"{param}[{first['index']}] is {first['cut']} tokens longer than the {most} that the model reads; "
            "send a shorter one, or leave out truncate=false to have it cut",
            param,
            "context_length_exceeded",
        )
    return cut
