"""Replacing the process of a model that advances in steps.

Its slots are seldom all empty by themselves, so when its successor has loaded beside it, it takes nobody in any more, lets
those who are in its slots come to their end, and goes. Replicas take turns, so that only one of them is closing at a time. On
a device, which has no room for two, the successor loads when the old one has gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from penstock.executors.process_renewal import LINGER, Renewed

if TYPE_CHECKING:
    from penstock.executors.process_child import Child
    from penstock.executors.process_slots import SlotsReplica

log = logging.getLogger("penstock")


class SlotsRenewal:
    """When a replica's process is due, its successor, and whether it still takes anybody in."""

    def __init__(self, replica: SlotsReplica) -> None:
        self._replica = replica
        self._alone = any(device != "cpu" for device in replica.owner.options.device or ())
        self._ended = 0  # requests, of this process
        self._begun = False
        self._successor: Child | None = None
        self.closing = False

    def look(self) -> None:
        """A request has ended."""
        self._ended += 1
        replica = self._replica
        if self.closing:
            if not replica.seats:
                self._swap()
        elif self._successor is not None or (self._begun and self._alone):
            self._close()
        elif not self._begun and self._due():
            self._begun = True
            if self._alone:
                self._close()
            else:
                replica.owner.spawn(self._load())

    def _due(self) -> bool:
        child, options = self._replica.child, self._replica.owner.options
        if child is None or self._replica.owner.stopping:
            return False
        large = options.recycle_bytes is not None and child.resident_mib << 20 >= options.recycle_bytes
        return large or (options.recycle is not None and self._ended >= options.recycle)

    async def _load(self) -> None:
        replica = self._replica
        try:
            successor = await replica.life.launch(replica)
        except Exception as error:
            log.warning("%s was to be replaced, but its successor did not load: %s", replica.title, error)
            self.renewed()
            return
        if replica.child is None or not self._begun:  # has died meanwhile, and is being started again or has been
            successor.kill()
            return
        self._successor = successor
        self._close()

    def _close(self) -> None:
        """Take nobody in any more, if no other replica is closing; else it is tried again when a request ends."""
        replica = self._replica
        if any(other.renewal.closing for other in replica.owner.replicas):
            return
        self.closing = True
        replica.owner.down(replica.index, Renewed(f"{replica.title} is being replaced"))
        if not replica.seats:
            self._swap()

    def _swap(self) -> None:
        """Nobody is in its slots."""
        replica, successor = self._replica, self.take()
        old, replica.child = replica.child, None
        assert old is not None
        self.renewed()
        old.stop()
        replica.owner.loop.call_later(LINGER, old.kill)
        if successor is None:
            replica.owner.spawn(self._follow(old))
        else:
            replica.up(successor)

    async def _follow(self, old: Child) -> None:
        await asyncio.shield(old.gone)
        await self._replica.restart()

    def take(self) -> Child | None:
        """The successor, if that is ready."""
        successor, self._successor = self._successor, None
        return successor

    def renewed(self) -> None:
        """Another process fills the replica, or the old one stays: count from the beginning."""
        self._begun = self.closing = False
        self._ended = 0

    def died(self, child: Child) -> None:
        """A process that is not the replica's has gone; if it was the successor, another is loaded when the next is due."""
        if child is self._successor:
            self._successor, self._begun = None, False
