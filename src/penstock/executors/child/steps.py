"""The loop around a model that advances in steps: whoever drives it says how it listens and reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stepper import Stepper


class Steps(ABC):
    """Steps a model in the thread that calls `drive`, which returns when it is `done`."""

    stepper: Stepper
    model: Any

    def drive(self) -> None:
        """Listen, step, let out and report, until there is no more to do."""
        stepper = self.stepper
        while True:
            self.listen()
            if not stepper.idle:
                plan = stepper.plan()
                began = perf_counter()
                try:
                    emissions = self.wait(self.model.step(plan))
                    stepper.absorb(plan, emissions, perf_counter() - began)
                except BaseException as error:
                    stepper.fail(plan, self.contain(error))
            self.let_out()
            self.report()
            if self.done:
                return

    def let_out(self) -> None:
        """Their slots are the model's to forget, before anybody hears that they are free."""
        drops = self.stepper.drops
        while drops:
            slot = drops.pop()
            try:
                self.wait(self.model.drop(slot))
            except BaseException as error:  # harms no request: its own has ended
                self.spoilt(error)

    @property
    def waits(self) -> bool:
        """There is nothing to do before something is heard."""
        stepper = self.stepper
        return stepper.idle and not stepper.ends and not self.done

    @property
    @abstractmethod
    def done(self) -> bool:
        """Told to stop, and nobody is left."""

    @abstractmethod
    def listen(self) -> None:
        """Carry out what has been told; wait for it while there is nothing else to do."""

    @abstractmethod
    def report(self) -> None:
        """Report what the step has left."""

    @abstractmethod
    def contain(self, error: BaseException) -> BaseException:
        """What is reported for what a step raised."""

    @abstractmethod
    def spoilt(self, error: BaseException) -> None:
        """`drop` raised."""

    def wait(self, value: Any) -> Any:
        """What the model returned, once it is there."""
        return value
