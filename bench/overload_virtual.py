"""Row D in virtual time: the scheduler alone with all its defaults, over a grid of variants.

Answers inside the callers' patience as a share of capacity, over the whole run and in its worst second. Where patience
is drawn anew for each caller, some leave while they are being served whatever is done: the last column is what a plain
queue of two rounds, which refuses everybody else and learns nothing, does with the same calls.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing import Pool
from random import Random

from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import AIMD, Fixed
from penstock.core.station import StationOptions
from penstock.sim.crowd import Crowd, Draw

WARM = 4.0  # seconds, of which three at a fraction of the load, with callers who never leave


def batched(size: int, replicas: int = 1) -> StationOptions:
    return StationOptions("model", replicas=replicas, batch=Batch(max_size=size, max_wait=0.005), stage=True)


def heavy(mean: float, sigma: float) -> Callable[[Random], float]:
    return lambda random: random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


# name: (station, seconds of one start, starts x size at a time)
MODELS: dict[str, tuple[Callable[[], StationOptions], Callable[[Random], float], float]] = {
    "50 ms x 8": (lambda: batched(8), lambda _: 0.05, 160.0),
    "10 ms x 32": (lambda: batched(32), lambda _: 0.01, 3200.0),
    "two of 100 ms x 8": (lambda: batched(8, replicas=2), lambda _: 0.1, 160.0),
    "16 slots of 100 ms": (lambda: StationOptions("model", replicas=16), lambda _: 0.1, 160.0),
    "on the loop, 16 at once": (lambda: StationOptions("model", limits=(Fixed(16), AIMD())), lambda _: 0.1, 160.0),
    "one slot of 6.25 ms": (lambda: StationOptions("model", replicas=1), lambda _: 0.00625, 160.0),
    "50 ms x 8, heavy tail": (lambda: batched(8), heavy(0.05, 0.8), 160.0),
    "16 slots, heavy tail": (lambda: StationOptions("model", replicas=16), heavy(0.1, 1.0), 160.0),
}

SLOW: dict[
    str, tuple[Callable[[], StationOptions], Callable[[Random], float], float]
] = {  # where one start for nobody keeps everybody waiting; for the tenant that hangs up alone
    "one slot of 100 ms": (lambda: StationOptions("model", replicas=1), lambda _: 0.1, 10.0),
    "four slots of 100 ms": (lambda: StationOptions("model", replicas=4), lambda _: 0.1, 40.0),
}


def constant(seconds: float) -> Callable[[Crowd], Draw]:
    return lambda crowd: lambda: seconds


def mixed(short: float, share: float, long: float) -> Callable[[Crowd], Draw]:
    return lambda crowd: lambda: short if crowd.random.random() < share else long


def switching(*seconds: float) -> Callable[[Crowd], Draw]:
    """Another patience every 10 seconds."""
    return lambda crowd: lambda: seconds[int((crowd.drive.now - WARM) // 10) % len(seconds)]


def exponential(mean: float) -> Callable[[Crowd], Draw]:
    return lambda crowd: lambda: crowd.random.expovariate(1 / mean)


PATIENCE: dict[str, Callable[[Crowd], Draw]] = {
    "0.3 s": constant(0.3),
    "1 s": constant(1.0),
    "3 s": constant(3.0),
    "half 0.3 s, half 3 s": mixed(0.3, 0.5, 3.0),
    "8 % 0.3 s, others 3 s": mixed(0.3, 0.08, 3.0),
    "four of ten within 0.1 s, others 3 s": lambda crowd: (
        lambda: crowd.random.uniform(0.0, 0.1) if crowd.random.random() < 0.4 else 3.0
    ),
    "1 s, then 0.3 s, ...": switching(1.0, 0.3),
    "3 s, then 0.3 s, ...": switching(3.0, 0.3),
    "0.3 s, 1 s, 3 s, ...": switching(0.3, 1.0, 3.0),
    "exponential, mean 0.5 s": exponential(0.5),
    "exponential, mean 2 s": exponential(2.0),
    "exponential, mean 8 s": exponential(8.0),
    "uniform 0.2 to 2 s": lambda crowd: lambda: crowd.random.uniform(0.2, 2.0),
    "lognormal, median 1 s": lambda crowd: lambda: crowd.random.lognormvariate(0.0, 1.0),
}
DRAWN = [name for name in PATIENCE if name.startswith(("exp", "uni", "log"))]
TENANTS = "tenants of 0.3 s and 3 s"
LOADS = (1.2, 2.0, 10.0)


def crowd_of(model: str, plain: bool = False, seed: int = 1) -> Crowd:
    options, seconds, _ = (MODELS | SLOW)[model]
    random = Random(seed + 1)
    crowd = Crowd(options(), lambda work: seconds(random), seed)
    return two_rounds(crowd) if plain else crowd


def two_rounds(crowd: Crowd) -> Crowd:
    """The same station behind a plain queue of two rounds."""
    let_in, most = crowd.arrive, 2 * (crowd.station.batch.max_size if crowd.station.batch else 16)

    def arrive(patience: float, tenant: str = "") -> None:
        if len(crowd.station.waiting) + crowd.station.apart < most:
            let_in(patience, tenant)

    crowd.arrive = arrive  # type: ignore[method-assign]
    return crowd


def overload(case: tuple[str, str, float, bool]) -> tuple[float, float]:
    """The share of capacity, over all and in the worst second."""
    model, patience, load, plain = case
    crowd, capacity = crowd_of(model, plain), MODELS[model][2]
    seconds = 40 if patience.endswith("...") else 20 if capacity < 1000 else 8
    crowd.poisson(0.4 * capacity, lambda: 1e9, 0.0, 3.0)
    if patience == TENANTS:
        for tenant, each in (("a", 0.3), ("b", 3.0)):
            crowd.poisson(load * capacity / 2, lambda each=each: each, WARM, WARM + seconds, tenant)  # type: ignore[misc]
    else:
        crowd.poisson(load * capacity, PATIENCE[patience](crowd), WARM, WARM + seconds)
    crowd.drive.run(WARM + seconds)
    by_second = [0] * seconds
    for at in crowd.times:
        if WARM <= at < WARM + seconds:
            by_second[int(at - WARM)] += 1
    return sum(by_second) / seconds / capacity, min(by_second) / capacity


def bursts(case: tuple[str, float, float, float]) -> tuple[float, int]:
    """A minute of bursts, as many calls each second as the station serves in 0.625 s: (answered, refused)."""
    model, patience, early, before = case
    crowd, capacity = crowd_of(model), MODELS[model][2]
    if before:
        crowd.poisson(2 * capacity, lambda: before, 0.0, 20.0)
    crowd.drive.run(24.9)
    offered, answers, refused = crowd.offered[""], crowd.answers[""], crowd.refused[""]
    random = crowd.random
    leave = lambda: random.random() * 0.05 if random.random() < early else patience  # noqa: E731
    crowd.bursts(int(0.625 * capacity), leave, 25.0, 84.5)
    crowd.drive.run()
    return (crowd.answers[""] - answers) / (crowd.offered[""] - offered), crowd.refused[""] - refused


def hang_ups(case: tuple[str, str, float, int]) -> int:
    """What a tenant's callers are answered beside one that sends `times` as much and hangs up after 10 ms."""
    model, patience, load, times = case
    crowd, capacity, alike = crowd_of(model), (MODELS | SLOW)[model][2], Random(2)
    seconds = 300.0 if capacity < 100 else 40.0 if capacity < 1000 else 8.0
    draw = (lambda: 1.0) if patience == "1 s" else lambda: alike.expovariate(0.5)
    crowd.poisson(load * capacity, draw, 0.0, seconds, "patient")
    if times:
        crowd.poisson(times * load * capacity, lambda: 0.01, 0.0, seconds, "hangs up")
    crowd.drive.run(seconds + 15.0)
    return crowd.answers["patient"]


def table(heads: tuple[str, ...]) -> None:
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)


def grid() -> Iterator[tuple[str, str, float]]:
    for model, patience, load in product(MODELS, [*PATIENCE, TENANTS], LOADS):
        if MODELS[model][2] < 1000 or load < 10 or patience in ("0.3 s", "1 s", "3 s"):
            yield model, patience, load


def main() -> None:
    os.nice(10)
    with Pool(os.cpu_count()) as pool:
        table(("model", "patience", "load", "of capacity", "worst second", "plain queue"))
        cases = list(grid())
        plain = pool.imap(overload, [(*case, True) for case in cases if case[1] in DRAWN])
        for case, ours in zip(cases, pool.imap(overload, [(*case, False) for case in cases]), strict=True):
            other = f"{next(plain)[0]:.1%}" if case[1] in DRAWN else ""
            print("| {} | {} | {:g}x | {:.1%} | {:.1%} | {} |".format(*case, *ours, other), flush=True)
        table(("bursts each second", "patience", "leave within 50 ms", "learned before", "answered", "refused"))
        each = [
            (m, p, e, b) for m in MODELS for p, e, b in ((1.0, 0.0, 0.0), (1.0, 0.02, 0.0), (1.0, 0.0, 0.3), (0.3, 0.0, 0.0))
        ]
        for (model, patience_s, early, before), (answered, refused) in zip(each, pool.imap(bursts, each), strict=True):
            print(
                f"| {model} | {patience_s:g} s | {early:.0%} | {before or 'nothing'} | {answered:.1%} | {refused} |", flush=True
            )
        table(("a tenant that hangs up", "others' patience", "others' load", "as much", "ten times as much"))
        trios = list(product((*MODELS, *SLOW), ("1 s", "exponential, mean 2 s"), (0.8, 1.2, 2.0), (0, 1, 10)))
        answers = pool.imap(hang_ups, trios)
        for (model, patience, load, _), alone, same, ten in zip(trios[::3], answers, answers, answers, strict=False):
            print(f"| {model} | {patience} | {load:g}x | {same / alone - 1:+.1%} | {ten / alone - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
