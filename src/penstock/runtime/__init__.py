"""The driver of the core on asyncio: the only reader of the clock, the only doer of I/O for the scheduler."""

from penstock.runtime.app import App
from penstock.runtime.compose import join, map, within  # noqa: A004 - the field's own names
from penstock.runtime.driver import Runtime

__all__ = ["App", "Runtime", "join", "map", "within"]
