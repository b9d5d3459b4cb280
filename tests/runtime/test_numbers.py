"""Every number of a public declaration: what is none is refused where it is said, by the option's name."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import policy
from penstock.core.policy.scale import Elastic
from penstock.errors import ConfigError

NEEDED: dict[Any, dict[str, Any]] = {  # what a declaration must be given
    ps.Fixed: {"n": 1},
    ps.Rate: {"per_second": 1.0},
    ps.Pool: {"name": "p", "capacity": 1.0},
    ps.Memory: {"name": "m", "size_bytes": 1},
    ps.Remote: {"urls": "http://there:8000"},
    policy.Weighted: {"weights": [1.0]},
}
DECLARED = {
    value
    for module in (ps, policy)
    for name in module.__all__
    if dataclasses.is_dataclass(value := getattr(module, name)) and inspect.isclass(value)
} | {Elastic}
SINGLE = {"int", "float"}
HOLDS = re.compile(r"(Sequence|Mapping)\[(str, )?(int|float)\]")


async def plain(x: int) -> int:
    return x


served = ps.service(plain, name="served")
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., object]]] = {
    "service": (
        ps.service.__wrapped__ if hasattr(ps.service, "__wrapped__") else ps.service,
        lambda **o: ps.service(plain, **o),
    ),
    "App": (ps.App.__init__, ps.App),
    "budget": (ps.budget, lambda **o: ps.budget(**o).__enter__()),
    "map": (ps.map, lambda **o: ps.map(served, [], **o)),
    "Service.map": (ps.Service.map, lambda **o: list(served.map([], **o))),
}


def numbers() -> Iterator[tuple[str, Callable[[Any], object], str, bool]]:
    """(title, how to declare it with this value, the option, whether None is one) of every number there is."""
    for cls in sorted(DECLARED, key=lambda cls: str(cls.__name__)):
        for field in dataclasses.fields(cls):
            if field.init:
                make = _with(cls, NEEDED.get(cls, {}), field.name)
                yield from _number(cls.__name__, field.name, str(field.type), make)
    for name, (function, call) in FUNCTIONS.items():
        for option, parameter in inspect.signature(function).parameters.items():
            yield from _number(name, option, str(parameter.annotation), _with(call, {}, option))


def _with(call: Callable[..., object], needed: dict[str, Any], option: str) -> Callable[[Any], object]:
    return lambda value: call(**{**needed, option: value})


def _number(
    owner: str, option: str, annotation: str, make: Callable[[Any], object]
) -> Iterator[tuple[str, Callable[[Any], object], str, bool]]:
    kinds = set(annotation.split(" | "))
    held = [match for kind in kinds if (match := HOLDS.fullmatch(kind))]
    if kinds & SINGLE:
        yield f"{owner}({option}=)", make, option, "None" in kinds
    elif held and held[0][1] == "Sequence":
        yield f"{owner}({option}=[])", lambda value: make([value]), option, False
    elif held:
        yield f"{owner}({option}={{}})", lambda value: make({"a": value}), option, False


ALL = list(numbers())


def test_they_are_all_there() -> None:
    """The annotations are read as they are written: a way of writing that is new here would go unseen."""
    found = {title for title, *_ in ALL}
    assert len(found) == len(ALL) > 60
    assert found >= {
        "AIMD(window=)", "App(max_body=)", "Batch(max_wait=)", "Elastic(keep=)", "FairShare(weights={})", "Memory(size_bytes=)",
        "Process(cores=[])", "Process(replicas=)", "Service.map(concurrency=)", "Weighted(weights=[])", "budget(within=)",
        "map(concurrency=)", "service(buffer=)", "service(start_timeout=)",
    }  # fmt: skip


@pytest.mark.parametrize("value", ["3", None, True, math.nan, [], np.arange(2)], ids=repr)
@pytest.mark.parametrize(("make", "option", "optional"), [rest for _, *rest in ALL], ids=[title for title, *_ in ALL])
def test_what_is_no_number_is_refused_by_the_name_of_its_option(
    make: Callable[[Any], object], option: str, optional: bool, value: Any
) -> None:
    if value is None and optional:
        make(value)
        return
    with pytest.raises(ConfigError, match=option):
        make(value)


def test_within_takes_seconds() -> None:
    for wrong in ("3", None, True, math.nan, [], 0):
        with pytest.raises(ConfigError, match="seconds"):
            ps.within(wrong, plain).send(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("amount", ["3", None, True, math.nan, []], ids=repr)
def test_what_a_call_takes_of_a_pool_is_a_number(amount: Any) -> None:
    with pytest.raises(ConfigError, match="a number or a function"):
        ps.service(plain, needs={ps.Pool("p", 1.0): amount})


@pytest.mark.parametrize("one", [np.int64(1), np.float32(0.5), math.inf], ids=repr)
def test_numbers_of_other_kinds_are_numbers(one: Any) -> None:
    assert ps.Queue(max_wait=one).max_wait == one
