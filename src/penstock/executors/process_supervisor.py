"""What all kinds of replicas in child processes have in common: they are watched, killed, and started again."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError, ProgressTimeout, WorkerLost
from penstock.executors.child.wire import Frame
from penstock.executors.process_child import Child
from penstock.executors.process_life import GivenUp, Life

if TYPE_CHECKING:
    from penstock.executors.process import Processes

log = logging.getLogger("penstock")


class Supervisor(ABC):
    """One replica, whichever process fills it at the moment."""

    def __init__(self, owner: Processes, index: int) -> None:
        self.owner = owner
        self.index = index
        self.title = f"{owner.body.name}[{index}]"
        self.life = Life(owner, index)
        self.child: Child | None = None
        self.charged = True  # a death counts as a failure
        self.verdict: PenstockError | None = None  # why the process is being killed, if that was us
        self.stalled = self.silent = 0.0  # seconds, as the watchdog counts them
        self.over = False  # it is put away, and another may have its place
        self._restarting: asyncio.Task[Any] | None = None

    async def launch(self) -> None:
        """Start a process and wait until its body is loaded; raises what its constructor raised."""
        self.child = await self.life.launch(self)

    # What a kind of replica adds

    @abstractmethod
    def expected(self) -> bool:
        """It has work that should be making progress now."""

    @abstractmethod
    def lose(self, error: PenstockError, again: bool) -> None:
        """The process has gone with what it ran. `again`: that may be tried once more."""

    def given_up(self, error: GivenUp) -> None:
        """No other process will be started."""

    def charges(self) -> bool:
        """Whether this death is the first of what ran."""
        return True

    @abstractmethod
    def served(self) -> bool:
        """Whether this process has answered anything."""

    def spare(self) -> Child | None:
        """A process that is ready in place of the one that died."""
        return None

    def other_died(self, child: Child) -> None:
        """A process of this replica that does not fill it now has gone."""

    def settle(self) -> None:
        """It will be stopped: take back what has not begun, and say what is still to be said."""

    # What a child tells

    def done(self, child: Child, frame: Frame) -> None:
        """A unit has ended."""

    def items(self, child: Child, frame: Frame) -> None:
        """Items were produced."""

    @abstractmethod
    def whose(self, number: int, index: int) -> object | None:
        """The request, if it still runs, that a call was made for."""

    def called(self, child: Child, frame: Frame) -> None:
        """The body calls another service."""
        self.stalled = 0.0
        child.calls.begin(frame, self.whose if child is self.child else lambda number, index: None)

    # Deaths

    def watch(self, elapsed: float, limit: float) -> None:
        """The watchdog looks, every `elapsed` seconds of this process's own running."""
        child = self.child
        if child is None:
            return
        self.silent = 0.0 if child.heard else self.silent + elapsed
        child.heard = False
        self.stalled = self.stalled + elapsed if self.expected() else 0.0
        if self.silent >= limit:
            self.kill(ProgressTimeout(f"{self.title} was killed: it has not given a sign of life for {limit:g} s"))
        elif self.stalled >= limit:
            self.kill(ProgressTimeout(f"{self.title} was killed: no progress for {limit:g} s; see progress_timeout"))

    def kill(self, verdict: PenstockError) -> None:
        """End the process, for this reason."""
        if self.child is not None and self.verdict is None:
            self.verdict = verdict
            self.child.kill()

    def overdue(self, limit: float) -> None:
        """What nobody wants any more has not stopped in time: end the process, which is no failure of its own."""
        self.kill(WorkerLost(f"{self.title} was killed: its work went on for {limit:g} s after the last caller had left"))
        self.charged = False

    def died(self, child: Child, how: str) -> None:
        """The process has gone: say what is lost, and start another."""
        owner = self.owner
        owner.processes.pop(child.pid, None)
        if child is not self.child:
            self.other_died(child)
            return
        verdict, self.verdict = self.verdict, None
        charged, self.charged = self.charged, True
        self.child, self.silent = None, 0.0
        error = verdict or WorkerLost(f"{owner.body.name} was stopped" if owner.stopping else f"{self.title} {how}")
        if not owner.stopping:
            if charged and self.charges():
                self.life.fail(self.served())
            log.warning("%s; it is started again", error if verdict else f"{self.title} {how}")
            owner.down(self.index, error)
            owner.spawn(self.restart())
        self.lose(error, again=verdict is None and not owner.stopping)

    async def restart(self) -> None:
        """Another process, or the end of this replica."""
        if self.over:
            return
        self._restarting = asyncio.current_task()
        try:
            self.up(self.spare() or await self.life.relaunch(self))
        except GivenUp as error:
            log.error("%s; it is given up", error)
            self.owner.down(self.index, error)
            self.given_up(error)
        finally:
            self._restarting = None

    def leave(self) -> Child | None:
        """Nothing runs here any more, and nothing will: the process that is left, if there is one."""
        self.over = True
        if self._restarting is not None:
            self._restarting.cancel()
        child, self.child = self.child, None
        return child

    def up(self, child: Child) -> None:
        """A process has loaded and takes the place of the one that is gone."""
        self.child = child
        self.silent = self.stalled = 0.0
        self.owner.up(self.index)
