"""What crosses to a child at once: a work, or a part of one."""

from __future__ import annotations

from typing import Any

from penstock.errors import InvalidRequest
from penstock.executors.base import Body
from penstock.executors.child.wire import Encoded, plain
from penstock.executors.flow import Credit
from penstock.executors.process_child import Child
from penstock.executors.process_trial import Trial


class Unit:
    """A work on its way: encoded for one process, and numbered. Its counts are of the items that it streams."""

    __slots__ = ("_credit", "buffer", "credited", "encoded", "error", "left", "number", "part", "sent", "trial", "work")

    def __init__(self, work: Any, trial: Trial | None, buffer: int) -> None:
        part = range(len(work.requests)) if trial is None else trial.part()
        assert part is not None
        self.work = work
        self.part = part
        self.trial = trial
        self.number = 0
        self.encoded: Encoded | None = None
        self.error: BaseException | None = None  # why it could not be encoded
        self.left = False  # nobody waits for it any more
        self.buffer = buffer
        self.sent = self.credited = 0
        self._credit: Credit | None = None

    def encode(self, body: Body, child: Child, number: int) -> None:
        """Encode the input; one that cannot be sent waits its turn to be told."""
        self.number = number
        requests = self.work.requests
        if self.trial is not None:
            requests = requests[self.part.start : self.part.stop]
        lifted = False
        if body.batched:
            units: Any = [list(column) for column in zip(*[request.item.args for request in requests], strict=True)]
        else:
            units = [(request.item.args, request.item.kwargs) for request in requests]
            lifted = len(units) == 1 and plain(units[0][0]) and plain(units[0][1].values())
        try:
            self.encoded = child.encode(number, units, lifted)
        except Exception as error:
            self.error = InvalidRequest(f"{body.name}: the input cannot be sent to its process: {error}")

    def take(self, count: int, child: Child) -> None:
        """The stream's reader took items: let the child produce as many more, in groups."""
        if self._credit is None:
            self._credit = Credit(self.buffer)
        owed = self._credit.take(count)
        if owed:
            child.credit(self.number, owed)
            self.credited += owed

    def full(self) -> bool:
        """The stream is as far ahead of its reader as it may be."""
        return self.sent - self.credited >= self.buffer
