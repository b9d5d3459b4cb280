"""The lives of one replica's processes: started, restarted after growing pauses, and in the end given up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from penstock.errors import ServiceError
from penstock.executors.process_child import Child, Owner

if TYPE_CHECKING:
    from penstock.executors.process import Processes

PAUSES = (0.0, 0.1, 0.3, 1.0, 2.0, 5.0)  # seconds before a restart, by the failures in a row that had answered nothing
WITHIN = 300.0


class GivenUp(ServiceError):
    """A replica failed too often to be started again."""

    final = True


class Life:
    """Starts the processes of one replica, and counts how often they fail."""

    def __init__(self, executor: Processes, index: int) -> None:
        self._executor = executor
        self._index = index
        self._failures: list[float] = []
        self._barren = 0

    async def launch(self, owner: Owner) -> Child:
        """Start a process and wait until its body is loaded; raises what its constructor raised."""
        executor, limit = self._executor, self._executor.options.startup_timeout
        name = f"{executor.body.name}[{self._index}]"
        child = Child(executor.loop, owner, executor.host, executor.launcher.launch(self._index), name)
        executor.processes[child.pid] = child
        child.load(executor.launcher.declaration)
        try:
            await asyncio.wait_for(asyncio.shield(child.loaded), limit)
        except BaseException as error:
            child.loaded.cancel()
            child.kill()
            if isinstance(error, TimeoutError):
                raise ServiceError(f"{child.name} was not loaded within {limit:g} s; see startup_timeout") from None
            raise
        return child

    def fail(self, served: bool) -> None:
        """One more failure, of a process that had answered something or not.

        A batch that is run again in parts counts once, however often it kills.
        """
        now = time.monotonic()
        self._barren = 0 if served else self._barren + 1
        self._failures = [*(at for at in self._failures if now - at < WITHIN), now]

    async def relaunch(self, owner: Owner) -> Child:
        """Start a process, again and again if it does not load; raises GivenUp when it has failed too often."""
        executor, error = self._executor, None
        while True:
            if len(self._failures) > executor.options.max_restarts:
                text = f"{executor.body.name}[{self._index}] failed {len(self._failures)} times within {WITHIN:g} s"
                raise GivenUp(text if error is None else f"{text}, the last time to load: {error}")
            await asyncio.sleep(PAUSES[min(self._barren, len(PAUSES) - 1)])
            try:
                return await self.launch(owner)
            except Exception as failed:
                error = failed
                self.fail(False)
                executor.down(self._index, failed)
