"""An app whose services take parameters of every kind, for schemathesis to compare with its /openapi.json."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic

import penstock as ps


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Box(msgspec.Struct, forbid_unknown_fields=True):
    left: float
    top: float
    label: str = ""


@dataclass
class Page:
    number: int
    boxes: list[Box] = field(default_factory=list)
    colour: Colour = Colour.RED


class Settings(TypedDict):
    depth: int
    name: NotRequired[str]


class Leaf(msgspec.Struct, tag=True):
    value: int


class Node(msgspec.Struct, tag=True):
    children: list[Node | Leaf]


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=0, le=100)
    name: str = "here"


class Line(pydantic.BaseModel):
    points: list[Point] = pydantic.Field(max_length=3)
    closed: bool | None = None


class Chosen(TypedDict):
    mode: str
    level: int
    colour: Colour


Moment = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=8, pattern="^[a-z]*$")]


@ps.service(safe=True)
async def scalars(
    whole: int,
    real: float = 0.5,
    flag: bool = False,
    text: str = "",
    maybe: int | None = None,
    either: int | str = 0,
) -> dict[str, int | float | bool | str | None]:
    """Required and optional scalars."""
    return {"whole": whole, "real": real, "flag": flag, "text": text, "maybe": maybe, "either": either}


@ps.service(safe=True)
async def choices(mode: Literal["fast", "exact"], level: Literal[1, 2, 3] = 1, colour: Colour = Colour.BLUE) -> Chosen:
    """Literals and an enum."""
    return {"mode": mode, "level": level, "colour": colour}


@ps.service(safe=True)
async def bounded(
    share: Annotated[float, msgspec.Meta(ge=0, le=1)], name: Short, count: Annotated[int, msgspec.Meta(gt=0)] = 1
) -> str:
    """Constrained values."""
    return f"{name} {share} {count}"


@ps.service
def nested(page: Page, settings: Settings, tree: Node | Leaf | None = None) -> Page:
    """A dataclass of Structs, a TypedDict, and a tagged union that refers to itself."""
    return page


@ps.service(safe=True)
async def lists(numbers: list[int], names: set[str] = set(), pair: tuple[int, str] = (0, "")) -> dict[str, int]:  # noqa: B006
    """Sequences."""
    return {str(number): len(names) for number in numbers}


@ps.service
async def modelled(line: Line, origin: Point | None = None) -> Line:
    """Pydantic models, nested, in and out."""
    return line


@ps.service(safe=True)
async def boxed(box: Box, pages: list[Page] = []) -> Box:  # noqa: B006
    """Objects and lists of objects, which a query has as JSON."""
    return box


@ps.service(safe=True)
async def moments(at: Moment, which: uuid.UUID | None = None) -> datetime.datetime:
    """Strings of a format."""
    return at


@ps.service
async def mapped(weights: dict[str, float], anything: Any = None) -> dict[str, float]:
    """Maps, and any value."""
    return weights


@ps.service(safe=True)
async def nothing() -> None:
    """No parameters."""


@ps.service(safe=True)
async def count(n: Annotated[int, msgspec.Meta(ge=0, le=20)], gap: Literal[0] = 0) -> AsyncIterator[dict[str, int]]:
    """A stream."""
    for i in range(n):
        yield {"i": i}


@ps.service
def letters(text: str) -> Iterator[str]:
    """A stream from a thread."""
    yield from text


@ps.service
async def reverse(data: bytes, times: int = 1) -> bytes:
    """Raw bytes in and out."""
    return data[::-1] if times % 2 else data


@ps.service(batch=ps.Batch(max_size=8, max_wait=0.001))
def lengths(texts: list[str]) -> list[int | Exception]:
    """One item of a batch."""
    return [len(text) for text in texts]


app = ps.App(
    scalars,
    choices,
    bounded,
    nested,
    lists,
    modelled,
    boxed,
    moments,
    mapped,
    nothing,
    count,
    letters,
    reverse,
    lengths,
    log=False,
)
