"""What policies refuse when they are declared: the mistakes that would otherwise come up in the middle of a run."""

from __future__ import annotations

from operator import index
from typing import SupportsIndex

from penstock.errors import ConfigError


def whole(what: str, value: object, least: int = 1) -> None:
    """Refuse what is no count."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or index(value) < least:
        raise ConfigError(f"{what}: a whole number, at least {least}, not {value!r}")


def function(what: str, value: object) -> None:
    """Refuse what cannot be called; None is none."""
    if value is not None and not callable(value):
        raise ConfigError(f"{what}: a function, not {value!r}")
