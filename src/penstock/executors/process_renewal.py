"""Replacing a process that has done enough or grown too large, between two works.

Its successor loads beside it and takes over, so that nobody waits. A device has no room for two: there the old one goes first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from penstock.errors import ServiceError

if TYPE_CHECKING:
    from penstock.executors.process_child import Child
    from penstock.executors.process_replica import Replica

log = logging.getLogger("penstock")
LINGER = 5.0  # seconds that a process may take to end when it has been replaced


class Renewed(ServiceError):
    """A replica is down for a moment, because its process is being replaced."""


class Renewal:
    """When a replica's process is due, and its successor, which loads beside it and takes over between two works."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._successor: Child | None = None
        self._begun = False
        self._alone = any(device != "cpu" for device in replica.owner.options.device or ())

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
            if not self._alone:
                replica.owner.spawn(self._load())
            elif replica.running is None and replica.waiting is None:
                self._retire()

    async def _load(self) -> None:
        replica = self._replica
        try:
            successor = await replica.life.launch(replica)
        except Exception as error:
            log.warning("%s was to be replaced, but its successor did not load: %s", replica.title, error)
            replica.works = 0
            self._begun = False
            return
        if replica.child is None:  # has died meanwhile, and is being started again
            successor.kill()
            self._begun = False
            return
        self._successor = successor
        if replica.running is None and replica.waiting is None:
            self.swap()

    def swap(self) -> None:
        """Let the successor take over, if there is one; nothing runs now. What is staged is encoded for it."""
        successor, replica = self._successor, self._replica
        if successor is None:
            if self._begun and self._alone:
                self._retire()
            return
        self._successor, self._begun = None, False
        old, replica.child, replica.works = replica.child, successor, 0
        if replica.staged is not None:
            replica.encode(replica.staged)
        if old is not None:
            old.stop()
            replica.owner.loop.call_later(LINGER, old.kill)

    def take(self) -> Child | None:
        """The process has died: its successor, if that is ready."""
        successor, self._successor = self._successor, None
        if successor is not None:
            self._begun = False
        return successor

    def _retire(self) -> None:
        """Let the process go, and start another when it has; nothing runs now."""
        replica, host = self._replica, self._replica.owner.host
        old, replica.child, self._begun = replica.child, None, False
        assert old is not None
        replica.owner.down(replica.index, Renewed(f"{replica.title} is being replaced"))
        staged = replica.unstage()
        if staged is not None:
            host.returned(staged)
        old.stop()
        replica.owner.loop.call_later(LINGER, old.kill)
        replica.owner.spawn(self._follow(old))

    async def _follow(self, old: Child) -> None:
        await asyncio.shield(old.gone)
        await self._replica.restart()

    def died(self, child: Child) -> None:
        """The successor has died before its turn."""
        if child is self._successor:
            self._successor, self._begun = None, False
