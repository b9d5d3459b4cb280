"""When a remote server is taken out of service because of how it answers, and how it comes back."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.policy.declared import number, whole
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
        whole("Breaker(failures=...)", self.failures)
        whole("Breaker(window=...)", self.window)
        whole("Breaker(trials=...)", self.trials)
        number("Breaker(slow=...), times the median of the others", self.slow, above=1)
        number("Breaker(eject=...)", self.eject, "seconds", above=0)
        number("Breaker(longest=...)", self.longest, "seconds", above=0)
        number("Breaker(share=...), of the remotes, never all at once", self.share, least=0, below=1)
        if self.eject > self.longest:
            raise ConfigError(f"Breaker(eject={self.eject:g}, longest={self.longest:g}): eject <= longest, in seconds")

    def out(self, ejections: int) -> float:
        """Seconds of the n-th ejection in a row."""
        return min(self.longest, self.eject * 2.0 ** (min(ejections, 60) - 1))
