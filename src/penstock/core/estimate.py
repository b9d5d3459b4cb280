"""What a start will take, in seconds and in memory: fitted to what starts have taken.

Seconds = a + b x cost.

Least squares over exponentially forgotten samples (the last fifty or so), both coefficients kept non-negative. Costs
that never vary leave a and b undetermined; then half of the mean is called fixed, and predictions at the cost that
was seen are exact.
"""

from __future__ import annotations


class ServiceTime:
    """The fitted duration of one start on one replica. Costs in the unit of the batch's cost function."""

    __slots__ = ("a", "b", "decay", "known", "peak", "samples", "sw", "swx", "swxx", "swxy", "swy")

    def __init__(self, decay: float = 0.98) -> None:
        self.decay = decay
        self.samples = 0
        self.known = False  # enough was seen to refuse anyone on a prediction
        self.sw = self.swx = self.swy = self.swxx = self.swxy = 0.0
        self.a = self.b = 0.0
        self.peak = 0.0  # the longest body of late, for each unit of cost

    def add(self, cost: float, seconds: float, inside: float | None = None) -> None:
        """A start took `seconds`, of which the body ran `inside`; None where the hand-off is not told apart."""
        d = self.decay
        self.samples += 1
        self.known = self.samples >= 3
        each = seconds if inside is None else inside
        if cost > 0:
            each /= cost
        self.peak = each if each > self.peak else self.peak + 0.01 * (each - self.peak)
        self.sw = self.sw * d + 1.0
        self.swx = self.swx * d + cost
        self.swy = self.swy * d + seconds
        self.swxx = self.swxx * d + cost * cost
        self.swxy = self.swxy * d + cost * seconds
        mean_x, mean_y = self.swx / self.sw, self.swy / self.sw
        variance = self.swxx / self.sw - mean_x * mean_x
        if variance <= 1e-6 * mean_x * mean_x or mean_x <= 0:
            self.a, self.b = mean_y / 2, (mean_y / 2 / mean_x if mean_x > 0 else 0.0)
            return
        b = (self.swxy / self.sw - mean_x * mean_y) / variance
        a = mean_y - b * mean_x
        if b < 0:
            a, b = mean_y, 0.0
        elif a < 0:
            a, b = 0.0, self.swxy / self.swxx
        self.a, self.b = a, b

    def seconds(self, cost: float) -> float:
        """Predicted seconds of a start of this cost; 0 while nothing is known."""
        return self.a + self.b * cost


class Correction:
    """By how much a service's own estimates of memory are off: a high expectile of measured peak / estimate.

    Asymmetric least squares (Newey and Powell, Econometrica 1987), followed online: a ratio above the factor moves it
    by UP of the difference, one below by DOWN. That is the expectile UP / (UP + DOWN), here 0.94: too small an estimate
    costs a crash, too large a one only room. Ratios are cut to [LEAST, MOST] before they count, so no single reading
    moves the factor far, and no estimate is ever corrected by more.
    """

    LEAST, MOST = 0.5, 4.0
    UP, DOWN = 0.3, 0.02

    __slots__ = ("factor", "samples")

    def __init__(self) -> None:
        self.factor = 1.0
        self.samples = 0

    def add(self, estimate: float, peak: float) -> None:
        """A start that was estimated at `estimate` took `peak` at its most."""
        if estimate <= 0:
            return
        self.samples += 1
        off = min(max(peak / estimate, self.LEAST), self.MOST) - self.factor
        self.factor += off * (self.UP if off > 0 else self.DOWN)
