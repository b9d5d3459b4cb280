"""Who is in which slot of a model that advances in steps, and how much of each step is whose.

Only bookkeeping: the loop around it, which calls the model, is a thread's, a task's or a child process's. Between two
steps it lets requests in and out, so nothing here is ever touched while the model runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .end import END
from .outcome import BAD, OVERFLOW, Verdict
from .steptime import StepTime

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST = 64  # units of a start in one step, while nothing is known of their price
ALONE = 2048  # where no other slot would be held up
CROWDED = 8.0  # times as long as without starts: no step is longer for them, however many there are
_SAFE = 0.95  # of the longest step, for what cannot be foreseen


class Seat:
    """One request in its slot."""

    __slots__ = ("early", "key", "last", "left", "room")

    def __init__(self, key: Any, units: int, room: float) -> None:
        self.key = key
        self.early = False
        self.left = units  # of its start, to be worked off
        self.room = room  # items that its reader would still let it be ahead
        self.last: Any = END  # the newest item, where only the last one is asked for


class Stepper:
    """The slots of one model. `items`, `ends` and `drops` are what the steps so far have left to be carried out."""

    def __init__(
        self,
        name: str,
        *,
        budget: int | None,
        stretch: float,
        buffer: int,
        stream: bool,
        drop_slow: bool,
        longest: float | None = None,
    ) -> None:
        self.name = name
        self.budget = budget
        self.stretch = stretch
        self.longest = longest  # seconds that a step may take for the sake of starts
        self.buffer = buffer
        self.stream = stream
        self.drop_slow = drop_slow
        self.seats: dict[int, Seat] = {}
        self.starting: dict[int, Seat] = {}  # in the order of their coming
        self.stepping: dict[int, int] = {}  # slots that are past their start and whose readers keep up, each with a 1
        self.items: list[tuple[Any, Any]] = []
        self.ends: list[tuple[Any, Any]] = []
        self.drops: list[int] = []
        self.time = StepTime()

    # Between steps

    def join(self, slot: int, key: Any, units: Any, early: bool = False) -> None:
        """This request was added to this slot; `units` is what `add` returned. An `early` start goes before others."""
        if units is None:
            units = 0
        if not isinstance(units, int) or units < 0:
            self.drops.append(slot)
            got = f"{self.name}: add() returned {units!r}; return how many units the start takes, or None"
            self.ends.append((key, Verdict(BAD, got)))
            return
        seat = self.seats[slot] = Seat(key, units, self.buffer if self.stream else float("inf"))
        if units:
            self.starting[slot] = seat
            if early:
                seat.early = True
                self.starting = dict(sorted(self.starting.items(), key=_late))
        else:
            self.stepping[slot] = 1

    def leave(self, slot: int, key: Any) -> None:
        """Nobody wants this request any more."""
        seat = self.seats.get(slot)
        if seat is not None and seat.key == key:
            self._end(slot, seat, asyncio.CancelledError())

    def acknowledge(self, slot: int, key: Any, count: int) -> None:
        """The reader took `count` items: a slot that paused goes on."""
        seat = self.seats.get(slot)
        if seat is not None and seat.key == key:
            seat.room += count
            if seat.room > 0 and not seat.left:
                self.stepping[slot] = 1

    @property
    def idle(self) -> bool:
        """Nothing to step: no requests, or only such as wait for their readers."""
        return not self.stepping and not self.starting

    # One step

    def plan(self) -> dict[int, int]:
        """The units of each slot in the next step."""
        plan = self.stepping.copy()
        if self.starting:
            room = self._room()
            for slot, seat in self.starting.items():
                plan[slot] = units = min(seat.left, room)
                room -= units
                if room <= 0:
                    break
        return plan

    def _room(self) -> int:
        """How many units of starts the next step can take; at least one, or they would starve."""
        most = ALONE if self.budget is None else max(1, self.budget - len(self.stepping))
        if not self.stepping or (self.budget is not None and self.longest is None):
            return most
        if not self.time.price or not self.time.base:
            return min(most, FIRST if self.time.last[0] != FIRST else 2 * FIRST)  # only a difference teaches a price
        if self.longest is not None:
            longest = _SAFE * self.longest
        else:
            longest = min(CROWDED, 1.0 + (self.stretch - 1.0) * len(self.starting)) * self.time.base
        return min(most, max(1, int(self.time.units(longest))))

    def absorb(self, plan: dict[int, int], emissions: Iterable[tuple[int, Any]], seconds: float) -> None:
        """The model made this step. Raises what a malformed emission raises, which then fails the step."""
        self._work_off(plan, seconds)
        seats, items, stream = self.seats, self.items, self.stream
        for slot, item in emissions:
            seat = seats.get(slot)
            if seat is None or slot not in plan:
                if item is END or slot in plan:
                    continue  # it has just been ended here, or says twice that it ended
                raise ValueError(f"an item for slot {slot!r}, which was not in this step")
            if item is END:
                self._end(slot, seat, None)
            elif isinstance(item, BaseException):
                self._end(slot, seat, item)
            elif not stream:
                seat.last = item
            else:
                items.append((seat.key, item))
                seat.room -= 1
                if seat.room <= 0:
                    self._full(slot, seat)

    def _work_off(self, plan: dict[int, int], seconds: float) -> None:
        started = 0
        if self.starting:
            for slot, seat in list(self.starting.items()):
                units = plan.get(slot)
                if units is None:
                    break
                started += units
                seat.left -= units
                if seat.left <= 0:
                    del self.starting[slot]
                    if seat.room > 0:
                        self.stepping[slot] = 1
        self.time.add(started, seconds)

    def _full(self, slot: int, seat: Seat) -> None:
        if self.drop_slow:
            text = f"{self.name}: the reader is {self.buffer} items behind; read faster, or raise buffer="
            self._end(slot, seat, Verdict(OVERFLOW, text))
        else:
            self.stepping.pop(slot, None)

    def fail(self, plan: Iterable[int], error: BaseException) -> None:
        """The step was not made: it fails all that took part."""
        for slot in plan:
            seat = self.seats.get(slot)
            if seat is not None:
                self._end(slot, seat, error)

    def _end(self, slot: int, seat: Seat, result: Any) -> None:
        del self.seats[slot]
        self.stepping.pop(slot, None)
        self.starting.pop(slot, None)
        self.drops.append(slot)
        if result is None and not self.stream:
            result = seat.last
            if result is END:
                result = Verdict(BAD, f"{self.name}: ended without an item, so there is no answer")
        self.ends.append((seat.key, result))

    def take(self) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """What is to be told: pairs of request and item, pairs of request and result."""
        told = self.items, self.ends
        self.items, self.ends = [], []
        return told


def _late(starting: tuple[int, Seat]) -> bool:
    return not starting[1].early
