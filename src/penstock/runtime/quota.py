"""What a tenant may use in a minute, in tokens of language models, and what is left of it.

A bucket holds a minute's tokens and fills steadily. A call is let in if the bucket holds its prompt, which is taken at
once; what it produces is taken as it becomes known, and may leave a debt, for which the next call waits. So no number has
to be guessed beforehand, and over any longer time the rate is kept. (A token bucket that lends, as in RFC 2697's family.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from penstock.core.policy.limit import RateState
from penstock.errors import ConfigError


class Allowance(NamedTuple):
    """Of requests and of tokens: how many at once, how many of them are left, seconds until all are. None: no limit."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


class Bucket:
    """`level` tokens are left at `at`; below 0 they are owed."""

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: float) -> None:
        if not 0 < per_minute < math.inf:
            raise ConfigError(f"tokens per minute must be a number greater than 0, not {per_minute!r}")
        self.per_minute = per_minute
        self.level = per_minute
        self.at = -math.inf

    def left(self, now: float) -> float:
        """Tokens that are left now."""
        if now > self.at:
            gained = (now - self.at) * self.per_minute / 60
            self.level, self.at = min(self.per_minute, self.level + gained), now
        return self.level

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until a call with such a prompt may come; one that is larger than the bucket may when that is full."""
        return max(0.0, min(tokens, self.per_minute) - self.left(now)) * 60 / self.per_minute

    def take(self, tokens: float, now: float) -> None:
        """Use so many; a negative number gives them back."""
        self.level = min(self.per_minute, self.left(now) - tokens)


def allowance(requests: RateState | None, tokens: Bucket | None, now: float) -> Allowance:
    """What is left of both."""
    found = Allowance()
    if requests is not None:
        burst, used = requests.policy.burst, max(0.0, requests.tat - now)
        left = max(0, math.floor(burst - used / requests.interval + 1e-9))
        found = found._replace(limit_requests=burst, remaining_requests=left, reset_requests=used)
    if tokens is not None:
        left, full = max(0, math.floor(tokens.left(now) + 1e-6)), tokens.per_minute
        reset = (full - tokens.left(now)) * 60 / full
        found = found._replace(limit_tokens=int(full), remaining_tokens=left, reset_tokens=reset)
    return found
