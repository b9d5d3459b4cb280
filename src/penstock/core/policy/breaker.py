"""When a remote server is taken out of service because of how it answers, and how it comes back."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Breaker:
    """A remote is ejected after `failures` failed calls in a row, or when the median of its last `window` calls is longer than

    `slow` times that of the others. It stays out for `eject` seconds, twice as long each time in a row, at most `longest`.
    Then it gets one call at a time: a bad one ejects it again at once, and after `trials` good ones it is back.

    At most `share` of the remotes are out because of this, rounded down, and none while as many are out for other reasons:
    when all are bad, the fault is elsewhere, and sending all to the last one would kill that too. Outlier detection
    and its bounds are Envoy's; closed, open and half-open are from Nygard, Release It! (2007). A refusal for overload
    (429, or a refusal by another penstock) is no failure.
    """

    failures: int = 5
    slow: float = 3.0
    window: int = 20
    eject: float = 5.0
    longest: float = 300.0
    trials: int = 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if min(self.failures, self.window, self.trials) < 1:
            raise ConfigError(f"{self!r}: failures, window and trials are at least 1")
        if not self.slow > 1:
            raise ConfigError(f"Breaker(slow={self.slow:g}): greater than 1, times the median of the others")
        if not 0 < self.eject <= self.longest:
            raise ConfigError(f"Breaker(eject={self.eject:g}, longest={self.longest:g}): 0 < eject <= longest, in seconds")
        if not 0 <= self.share < 1:
            raise ConfigError(f"Breaker(share={self.share:g}): from 0 to below 1; all at once are never ejected")

    def out(self, ejections: int) -> float:
        """Seconds of the n-th ejection in a row."""
        return min(self.longest, self.eject * 2.0 ** (min(ejections, 60) - 1))
