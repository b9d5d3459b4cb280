"""A host that stands in for the runtime: keeps what executors report, and checks the contract as it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Item:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    context: Context | None = None
    token: Any = None

    def remaining(self) -> float | None:
        return None

    def enter(self) -> None:
        pass


@dataclass(eq=False)
class Request:
    item: Item
    id: str = "r"


@dataclass(eq=False)
class Work:
    replica: int
    requests: Sequence[Request]
    early: bool = False
    state: str = "new"
    results: Sequence[Any] | None = None
    items: list[Any] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)


def work(*args: Any, replica: int = 0, **kwargs: Any) -> Work:
    return Work(replica, [Request(Item(args, kwargs))])


def batch(*values: Any, replica: int = 0) -> Work:
    return Work(replica, [Request(Item((value,))) for value in values])


class Host:
    """Records; every misuse of the contract is an assertion, kept in `broken` as well since loops swallow them."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.up: list[int] = []
        self.down: list[tuple[int, BaseException]] = []
        self.changed = asyncio.Event()
        self.acknowledge = True
        self.executor: Any = None

    def _check(self, ok: bool, what: str) -> None:
        if not ok:
            self.broken.append(what)
        assert ok, what

    def run(self, work: Work) -> Work:
        work.state = "running"
        self.executor.run(work)
        return work

    def stage(self, work: Work) -> Work:
        work.state = "staged"
        self.executor.stage(work)
        return work

    def revoke(self, work: Work) -> bool:
        if self.executor.revoke(work):
            self._check(work.state == "staged", f"revoked a {work.state} work")
            work.state = "revoked"
            return True
        return False

    def taken(self, work: Work) -> None:
        self._check(work.state == "staged", f"taken while {work.state}")
        work.state = "running"
        work.began.set()

    def returned(self, work: Work) -> None:
        self._check(work.state == "staged", f"returned while {work.state}")
        work.state = "returned"
        work.done.set()

    def finished(self, work: Work, results: Sequence[Any], seconds: float | None = None, measured: bool = True) -> None:
        self._check(work.state == "running", f"finished while {work.state}")
        self._check(len(results) == len(work.requests), "wrong number of results")
        work.state, work.results = "finished", results
        work.done.set()

    def produced(self, work: Work, items: Sequence[Any]) -> None:
        self._check(work.state == "running", f"produced while {work.state}")
        work.items.extend(items)
        work.came.set()
        if self.acknowledge:
            self.executor.resume(work, len(items))

    def emitted(self, pairs: Sequence[tuple[Work, Any]]) -> None:
        for work, item in pairs:
            self.produced(work, [item])

    def replica_up(self, replica: int) -> None:
        self.up.append(replica)
        self.changed.set()

    def replica_down(self, replica: int, error: BaseException, others: Sequence[int] = ()) -> None:
        self.down += [(index, error) for index in (replica, *others)]
        self.changed.set()

    async def outcome(self, work: Work, within: float = 30.0) -> Any:
        async with asyncio.timeout(within):
            await work.done.wait()
        assert work.results is not None
        return work.results[0] if len(work.requests) == 1 else work.results

    async def call(self, *args: Any, replica: int = 0) -> Any:
        return await self.outcome(self.run(work(*args, replica=replica)))
