"""Whether to run again what failed: only what is declared safe, only within a budget, never after the first output."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from penstock.core.policy.declared import number, whole
from penstock.errors import ConfigError, WorkerLost


@dataclass(frozen=True, slots=True)
class Retry:
    """Run a failed call again, up to `attempts` starts in all, if its error is one of `on`.

    The wait before attempt k is uniform in [0, min(cap, base x 2^(k-1))] ("full jitter", Brooker, AWS 2015). A budget
    bounds retry storms as in Finagle and tower: each call deposits `budget` tokens, a retry takes one, and
    `reserve` tokens are there from the start. Applies to services declared `safe=True` only.

    Where a call failed before it began (`error.begun` is false: no connection to that remote, so nothing was sent) it is
    tried on every other remote that takes work, whatever the policy and the budget say: that runs nothing twice.
    """

    attempts: int = 3
    base: float = 0.05
    cap: float = 2.0
    budget: float = 0.1
    reserve: float = 10.0
    on: tuple[type[Exception], ...] = field(default=(WorkerLost,))

    def __post_init__(self) -> None:
        whole("Retry(attempts=...)", self.attempts)
        if not isinstance(self.on, tuple) or not all(isinstance(kind, type) for kind in self.on):
            raise ConfigError(f"Retry(on={self.on!r}): a tuple of exception classes")
        number("Retry(budget=...), a share of all calls", self.budget, least=0, most=1)
        number("Retry(reserve=...)", self.reserve, least=0)
        number("Retry(base=...)", self.base, "seconds", least=0)
        number("Retry(cap=...)", self.cap, "seconds", least=0)
        if self.cap < self.base:
            raise ConfigError(f"Retry(base={self.base:g}, cap={self.cap:g}): base <= cap")

    def delay(self, attempt: int, random: Random) -> float:
        """Seconds to wait after failed attempt number `attempt` (1 is the first)."""
        return random.random() * min(self.cap, self.base * 2.0 ** (attempt - 1))


class RetryBudget:
    """The tokens of one service's retries."""

    __slots__ = ("policy", "spent", "tokens")

    def __init__(self, policy: Retry) -> None:
        self.policy = policy
        self.tokens = policy.reserve
        self.spent = 0  # retries so far

    def deposit(self) -> None:
        self.tokens = min(self.tokens + self.policy.budget, max(self.policy.reserve, 1.0) * 10)

    def withdraw(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        self.spent += 1
        return True
