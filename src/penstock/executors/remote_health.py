"""Active health checks: a GET to every remote, every few seconds, beside its calls and on no slot of theirs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from penstock.executors.remote_client import Connection, Server

if TYPE_CHECKING:
    from penstock.executors.remote import RemoteExecutor

log = logging.getLogger("penstock")


class Probe:
    """One check; `result` is why it failed, or ""."""

    def __init__(self, server: Server, path: str, head: bytes) -> None:
        where = server.address.authority.encode("ascii")
        self.data = b"GET %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (path.encode("ascii"), where, head)
        self.connection: Connection | None = None
        self.status = 0
        self.result: asyncio.Future[str] = server.loop.create_future()

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status

    def body(self, data: bytes) -> None:
        """What it says is for people."""

    def ended(self) -> None:
        self.connection = None
        self._set("" if 200 <= self.status < 300 else f"its health check answers {self.status}")

    def lost(self, why: str, stale: bool, sent: bool = True) -> None:
        self.connection = None
        self._set(why)

    def _set(self, why: str) -> None:
        if not self.result.done():
            self.result.set_result(why)


class Checks:
    """One task a remote that is to be checked. The remotes are asked one after the other, not all at once."""

    def __init__(self, owner: RemoteExecutor) -> None:
        self.owner = owner
        self._tasks: list[asyncio.Task[None]] = []

    def _path(self, index: int) -> str:
        given = self.owner.options.health
        ours = not self.owner.servers[index].address.path
        return given if given is not None else f"/readyz/{self.owner.body.name}" if ours else ""

    async def start(self) -> None:
        """Check each once, and then go on in the background."""
        checked = [index for index in range(len(self.owner.servers)) if self._path(index)]
        first = await asyncio.gather(*(self._ask(index) for index in checked))
        for place, (index, (status, why)) in enumerate(zip(checked, first, strict=True)):
            if status == 404 and self.owner.options.health is None:
                log.warning(
                    "%s: %s has nothing at %s, so its health is not checked; give Remote(health=...) its path",
                    self.owner.body.name,
                    self.owner.servers[index].address.url,
                    self._path(index),
                )
                continue
            self.owner.checked(index, why, first=True)
            wait = self.owner.options.interval * (place + 1) / len(checked)
            self._tasks.append(self.owner.loop.create_task(self._check(index, wait)))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _check(self, index: int, wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            _, why = await self._ask(index)
            self.owner.checked(index, why)
            wait = self.owner.options.interval

    async def _ask(self, index: int) -> tuple[int, str]:
        owner = self.owner
        server = owner.servers[index]
        head = b"".join(line + b"\r\n" for line in owner.wire.head.split(b"\r\n") if line.startswith(b"authorization:"))
        probe = Probe(server, self._path(index), head)
        server.begin(probe)
        limit = max(owner.options.connect_timeout, owner.options.interval)
        try:
            async with asyncio.timeout(limit):
                why = await probe.result
                return probe.status, why
        except TimeoutError:
            return 0, f"its health check is not answered within {limit:g} s"
        finally:
            server.drop(probe)
