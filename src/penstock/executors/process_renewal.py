"""Replacing a process that has done enough or grown too large, between two works."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from penstock.errors import ServiceError

if TYPE_CHECKING:
    from penstock.executors.process_child import Child
    from penstock.executors.process_replica import Replica

log = logging.getLogger("penstock")
_LINGER = 5.0  # seconds that a process may take to end when it has been replaced


class Renewed(ServiceError):
    """A replica is down for a moment, because its process is being replaced."""


class Renewal:
    """When a replica's process is due, and its successor, which loads beside it and takes over between two works."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._successor: Child | None = None
        self._begun = False

    def look(self) -> None:
        """A work has ended: is the process due?"""
        replica, options = self._replica, self._replica.owner.options
        child = replica.child
        if self._begun or child is None or replica.owner.stopping:
            return
        if (options.recycle is not None and replica.works >= options.recycle) or (
            options.recycle_bytes is not None and child.resident_mib << 20 >= options.recycle_bytes
        ):
            self._begun = True
            replica.owner.spawn(self._load())

    async def _load(self) -> None:
        replica = self._replica
        try:
            successor = await replica.life.launch(replica)
        except Exception as error:
            log.warning("%s was to be replaced, but its successor did not load: %s", replica.title, error)
            replica.works = 0
            self._begun = False
            return
        self._successor = successor
        if replica.running is None and replica.waiting is None:
            self.swap()

    def swap(self) -> None:
        """Let the successor take over, if there is one; nothing runs now. What is staged is encoded for it."""
        successor, replica = self._successor, self._replica
        if successor is None:
            return
        self._successor, self._begun = None, False
        old, replica.child, replica.works = replica.child, successor, 0
        if replica.staged is not None:
            replica.encode(replica.staged)
        if old is not None:
            old.stop()
            replica.owner.loop.call_later(_LINGER, old.kill)

    def died(self, child: Child) -> None:
        """The successor has died before its turn."""
        if child is self._successor:
            self._successor, self._begun = None, False
