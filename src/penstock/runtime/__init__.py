"""The driver of the core on asyncio: the only reader of the clock, the only doer of I/O for the scheduler."""

from penstock.runtime.app import App
from penstock.runtime.compose import join, within
from penstock.runtime.driver import Runtime
from penstock.runtime.mapping import map  # noqa: A004 - the field's own name

__all__ = ["App", "Runtime", "join", "map", "within"]
