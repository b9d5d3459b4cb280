"""Memory budgets in a runtime: measured when they are first used, estimated for each call, read again once a second."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from penstock.core.pool import Memory, Pool, PoolState
from penstock.core.request import Request
from penstock.devices import memory as read_memory
from penstock.errors import ConfigError
from penstock.service import Service

if TYPE_CHECKING:
    from penstock.runtime.driver import Runtime


def estimate(service: Service[..., Any], request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
    """What this call alone needs of each pool, as its service says."""
    amounts = []
    for pool, amount in (service.options.needs or {}).items():
        if callable(amount):
            amount = amount([request.value]) if service.batched else amount(*args, **kwargs)
            if not isinstance(amount, int | float) or not 0 <= amount < math.inf:
                raise ConfigError(f"{service.name}: needs of {pool.name!r} are {amount!r}; give a finite number, 0 or more")
        amounts.append(float(amount))
    return amounts


class Budgets:
    """The pools of one runtime. Memory with a device is read on a thread, and the scheduler hears of it on the loop."""

    every = 1.0  # seconds

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.watched: list[tuple[PoolState, str, float]] = []  # with its device, and what is to stay free there
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def state(self, pool: Pool) -> PoolState:
        """This runtime's state of the pool; a budget without a size is measured now."""
        scheduler = self.runtime.scheduler
        known = scheduler.pools.get(pool)
        if known is not None:
            return known
        if not isinstance(pool, Memory) or pool.device is None:
            return scheduler.pool(pool)
        reading = read_memory(pool.device)
        if reading is None and not pool.capacity:
            raise ConfigError(f"Memory({pool.name!r}): {pool.device!r} cannot be measured here; give size_bytes=")
        if reading is None:
            return scheduler.pool(pool)
        state = scheduler.pool(pool, max(1.0, pool.share * reading.free))
        # Half of what the share leaves is for what others allocate and free; the budget gives way before the other half.
        self.watched.append((state, pool.device, (1.0 - pool.share) / 2 * reading.free))
        self._start()
        return state

    def _start(self) -> None:
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="penstock-memory", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            read = [(state, read_memory(device), stays) for state, device, stays in list(self.watched)]
            found = [(state, reading.free - stays) for state, reading, stays in read if reading is not None]
            try:
                self.runtime.post(lambda found=found: self._tell(found))  # type: ignore[misc]
            except RuntimeError:  # the loop is closed
                return

    def _tell(self, found: list[tuple[PoolState, float]]) -> None:
        runtime = self.runtime
        for state, free in found:
            runtime.apply(runtime.scheduler.pressure(state, free, runtime.clock()))
        runtime.arm()
