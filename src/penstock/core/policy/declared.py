"""What policies refuse when they are declared: the mistakes that would otherwise come up in the middle of a run.

Every number of a declaration goes through `whole` or `number`. A bool is no number here, and neither is a text that looks
like one: whoever reads settings from the environment is told so where the mistake is, by the option's name.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard

from penstock.errors import ConfigError


def whole(what: str, value: object, least: int | None = 1, *, optional: bool = False) -> None:
    """Refuse what is no count; None is none, if `optional`."""
    if value is None and optional:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f", at least {least}"
        raise ConfigError(f"{what}: a whole number{bound}, not {value!r}")


def number(
    what: str,
    value: object,
    of: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Refuse what is no real number within these bounds, and nan; None is none, if `optional`.

    `of` is its unit; `below=math.inf` says finite.
    """
    if value is None and optional:
        return
    if (
        is_number(value)
        and value == value
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return
    bounds = (("at least", least), ("greater than", above), ("at most", most), ("less than", below))
    said = [f", {word} {bound:g}" for word, bound in bounds if bound is not None and math.isfinite(bound)]
    kind = "a finite number" if below == math.inf else "a number"
    raise ConfigError(f"{what}: {kind}{f' of {of}' if of else ''}{''.join(said)}, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number, which a bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def function(what: str, value: object) -> None:
    """Refuse what cannot be called; None is none."""
    if value is not None and not callable(value):
        raise ConfigError(f"{what}: a function, not {value!r}")
