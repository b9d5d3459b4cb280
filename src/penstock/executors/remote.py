"""Runs calls on other servers: each work is one request, on one of `connections` slots of one remote.

Which slot is the core's business (`core.router`), and which remotes are well is the fleet's (`core.fleet`): a remote that is
out has its slots down, one that is being tried has one slot up. This module makes requests, tells both what came of them,
and asks for the health of each. Everything happens on the loop; a request on a kept connection costs no task.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.core.fleet import EJECTED, SERVING, TRIED, UNHEALTHY, Change, Fleet
from penstock.errors import DeadlineExceeded, PenstockError, RemoteFailed
from penstock.executors.base import Body, Host
from penstock.executors.invoke import cancelled
from penstock.executors.remote_client import Server
from penstock.executors.remote_exchange import Flow
from penstock.executors.remote_health import Checks
from penstock.executors.remote_place import Remote, address
from penstock.executors.remote_relay import Relay
from penstock.executors.remote_wire import Wire, blames, forwarded

log = logging.getLogger("penstock")


class Out(RemoteFailed):
    """Why a remote gets no work. Nothing has died, so it counts as no restart."""

    restarts = 0


@dataclass(slots=True)
class RemoteState:
    """One remote, for observers. `median` is in seconds, 0 while too few calls are known; `calls` by how they ended."""

    url: str
    state: str
    why: str
    running: int
    connections: int
    median: float
    ejections: int
    calls: dict[str, int]


class RemoteExecutor:
    """`options.urls` are the remotes; `buffer` bounds how far a stream may run ahead of its reader."""

    depth = 1

    def __init__(
        self,
        body: Body,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        options: Remote,
        signature: inspect.Signature,
        clock: Callable[[], float],
        *,
        buffer: int,
        safe: bool,
    ) -> None:
        self.body = body
        self.host = host
        self.loop = loop
        self.options = options
        self.clock = clock
        self.buffer = buffer
        self.safe = safe
        self.wire = (Relay if options.encoding == "openai" else Wire)(body, signature, options)
        places = [address(url) for url in options.urls]
        self.servers = [Server(place, loop, clock, options.connect_timeout, options.tls) for place in places]
        self.targets = [(p.path or "/" + body.name).encode("ascii") for p in places]
        self.heads = [f" HTTP/1.1\r\nhost: {p.authority}\r\n".encode("ascii") + self.wire.head for p in places]
        self.fleet = Fleet(len(places), options.breaker)
        self.calls: list[dict[str, int]] = [{} for _ in places]
        self.ejections = [0] * len(places)
        self.flows: dict[Any, Flow] = {}
        self._open = [0] * len(places)  # slots that the core has been told are up
        self._gone = [0.0] * len(places)  # since when a remote gets less than its work
        self._checks = Checks(self)
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Ask for the health of each, once; a remote that is not there does not keep the others waiting for long."""
        await self._checks.start()
        for index in range(len(self.servers)):
            self._follow(index, "")

    # Works

    def run(self, work: Any) -> None:
        """Send this work to the remote that its slot belongs to."""
        index = work.replica // self.options.connections
        try:
            line, body = self.wire.request(self.targets[index], work.requests)
        except PenstockError as error:
            self.loop.call_soon(self.host.finished, work, [error] * len(work.requests), None, False)
            return
        budget = forwarded(work.requests, ours=not self.servers[index].address.path)
        data = b"%b%b%bcontent-length: %d\r\n\r\n%b" % (line, self.heads[index], budget, len(body), body)
        flow = self.flows[work] = Flow(self, work, index, data, self.clock())
        self.servers[index].begin(flow)

    def stage(self, work: Any) -> None:
        """Not used: a free connection is faster than a queue behind a busy one."""
        self.host.returned(work)

    def revoke(self, work: Any) -> bool:
        return False

    def cancel(self, work: Any) -> None:
        """Close the connection, by which the remote hears that nobody waits."""
        flow = self.flows.get(work)
        if flow is not None:
            flow.drop()
            self.loop.call_soon(self._left, flow)

    def _left(self, flow: Flow) -> None:
        if flow.work in self.flows:
            self.ended(flow, cancelled(flow.work.requests))

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader of a stream took items."""
        flow = self.flows.get(work)
        if flow is not None:
            flow.take(count)

    def produced(self, flow: Flow, items: Sequence[Any]) -> None:
        """A stream went on; its first item is its answer's time."""
        if not flow.told:
            flow.told = True
            self._changed(self.fleet.answered(flow.index, flow.began, self.clock(), whole=False))
        self.host.produced(flow.work, items)

    def ended(self, flow: Flow, results: list[Any]) -> None:
        """The exchange is over. The fleet hears of it first, so that a retry goes elsewhere."""
        if self.flows.pop(flow.work, None) is None:
            return
        error = results[0] if isinstance(results[0], BaseException) else None
        now = self.clock()
        outcome, changes = self._judge(flow, error, now)
        counts = self.calls[flow.index]
        counts[outcome] = counts.get(outcome, 0) + 1
        self._changed(changes)
        self.host.finished(flow.work, results, measured=error is None)
        if self._idle is not None and not self.flows and not self._idle.done():
            self._idle.set_result(None)

    def _judge(self, flow: Flow, error: BaseException | None, now: float) -> tuple[str, Sequence[Change]]:
        """What this end says of its remote."""
        fleet, index, began = self.fleet, flow.index, flow.began
        if error is None:
            if flow.told:
                fleet.completed(index, began)
                return "ok", ()
            return "ok", fleet.answered(index, began, now)
        if blames(error):
            return "failed", fleet.failed(index, began, str(error), now)
        if isinstance(error, asyncio.CancelledError | DeadlineExceeded):
            if not flow.told and not self._stopping and fleet.late(index, began, now):
                return "late", fleet.failed(index, began, f"no answer in {now - began:.3g} s", now, late=True)
            return "left", ()
        return "refused", ()

    # The fleet

    def checked(self, index: int, why: str, first: bool = False) -> None:
        """The health of a remote, or why it has none."""
        self._changed(self.fleet.checked(index, why, self.clock(), first))

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._tell(change)
            self._follow(change.member, change.why)
        if self.fleet.wake_at < float("inf") and self._timer is None and not self._stopping:
            self._timer = self.loop.call_later(max(self.fleet.wake_at - self.clock(), 0.001), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._changed(self.fleet.tick(self.clock()))

    def _tell(self, change: Change) -> None:
        """One line when a remote is taken out, and one when it is back; trials between the two are not news."""
        member, url, now = self.fleet.members[change.member], self.servers[change.member].address.url, self.clock()
        gone = self._gone[change.member]
        if change.state == EJECTED:
            self.ejections[change.member] += 1
        if change.state in (EJECTED, UNHEALTHY) and not gone:
            self._gone[change.member] = now
            what = "is ejected" if change.state == EJECTED else "is unhealthy"
            log.warning("%s: %s %s and gets no work: %s", self.body.name, url, what, change.why)
        elif change.state == SERVING and member.healthy and gone:
            self._gone[change.member] = 0.0
            log.info("%s: %s serves again after %.1f s: %s", self.body.name, url, now - gone, change.why)

    def _follow(self, index: int, why: str) -> None:
        """Tell the core how many slots of this remote take work."""
        size, has = self.options.connections, self._open[index]
        wants = self.fleet.slots(index, size)
        self._open[index] = wants
        slots = range(index * size, (index + 1) * size)
        if wants < has:
            first, *others = slots[wants:has]
            error = Out(f"{self.servers[index].address.url} is {self.fleet.members[index].shown}: {why}")
            self.host.replica_down(first, error, others)
        for slot in slots[has:wants]:
            self.host.replica_up(slot)

    def states(self) -> list[RemoteState]:
        """Every remote, now."""
        size, found = self.options.connections, []
        for server, member, calls, ejections in zip(self.servers, self.fleet.members, self.calls, self.ejections, strict=True):
            running = sum(1 for flow in self.flows.values() if flow.index == member.index)
            state = RemoteState(
                server.address.url, member.shown, member.why, running, size, member.median, ejections, dict(calls)
            )
            found.append(state)
        return found

    async def stop(self, within: float) -> None:
        """Let requests end for `within` seconds, then close every connection."""
        self._stopping = True
        self._checks.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self.flows and within > 0:
            self._idle = self.loop.create_future()
            await asyncio.wait([self._idle], timeout=within)
        for flow in list(self.flows.values()):
            flow.drop()
            self.ended(flow, cancelled(flow.work.requests))
        for server in self.servers:
            server.close()


__all__ = ["EJECTED", "SERVING", "TRIED", "UNHEALTHY", "RemoteExecutor", "RemoteState"]
