"""Continuous batching: requests join and leave a running model between its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from penstock.core.policy.declared import function, number, whole
from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Slots:
    """Up to `size` requests at once in a model that advances in steps; in place of a `Batch`.

    The body is a class with three methods, called by one thread, here or in a child process (`on=ps.Process()`):

    `add(self, slot, ...)` puts a request into a slot (0 to size - 1) and returns how many units its start takes, such
    as the tokens of a prompt, or None where there is nothing to work off. What comes after `slot` is what callers
    pass. `step(self, slots)` gets a dict from slot to units: what it may work off of a start, else 1. It returns pairs
    `(slot, item)`, any number of them; the item `ps.END` ends the request, an exception instance fails it.
    `drop(self, slot)`: the request has ended, or nobody wants it any more; the slot will be given to another.

    Callers read items as a stream, or with `stream=False` await the last one (denoising). `budget` bounds the units of
    one step: each slot under way takes one, the rest goes to starts, which are worked off in pieces so that no long
    prompt holds up the others. Without it, seconds = a + b x units is fitted to the steps, and beside others one start gets
    what keeps a step within `stretch` times what it takes without; each further one adds as much, to 8 times at the most. A
    reader who is `buffer` items (of the service) behind pauses its slot, or with `slow="drop"` is ended with StreamOverflow.
    A step that raises fails all that took part in it, and a process that dies all in its slots.

    `cost(...)`, asked with what callers pass, says in advance how many units a start will take; so shares, predictions and
    admission reckon with a long prompt as such. An item costs `item_cost` of the same unit, charged as it is produced.
    Without a cost a start is 1.

    Iteration-level scheduling is from Orca (Yu et al., OSDI 2022), starts in pieces from Sarathi-Serve (Agrawal et
    al., OSDI 2024).
    """

    size: int = 32
    budget: int | None = None
    stretch: float = 1.5
    stream: bool = True
    slow: Literal["pause", "drop"] = "pause"
    cost: Callable[..., float] | None = None
    item_cost: float = 1.0

    def __post_init__(self) -> None:
        whole("Slots(size=...)", self.size)
        whole("Slots(budget=...)", self.budget, optional=True)
        function("Slots(cost=...)", self.cost)
        number("Slots(stretch=...), or nothing could ever start beside others", self.stretch, above=1)
        if self.slow not in ("pause", "drop"):
            raise ConfigError(f'Slots(slow={self.slow!r}): "pause" or "drop"')
        number("Slots(item_cost=...)", self.item_cost, least=0, below=math.inf)

    def start_cost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """The units that the start of such a call will take. Raises ConfigError for what is no cost."""
        if self.cost is None:
            return 1.0
        cost = self.cost(*args, **kwargs)
        if not isinstance(cost, int | float) or not 0 <= cost < math.inf:
            raise ConfigError(f"Slots(cost=...) gave {cost!r}; give a finite number, 0 or more")
        return float(cost)
