"""A storm on the core: random arrivals and faults in virtual time, with every law checked after every step.

The driver here carries commands out; `sim.books` keeps its own account of who was answered, what runs where and when
each thing started, apart from the scheduler's. `python -m penstock.sim.storm --seed N` replays one storm and prints it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any

from penstock.core.check import check, idle
from penstock.core.commands import Command, End, Retire, Revoke, Stage, Start, Stop
from penstock.core.request import RUNNING, STATE_NAMES, Request, Work
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station
from penstock.errors import WorkerLost
from penstock.sim import changes, world
from penstock.sim.books import Books

REQUESTS = 60
MOST_STEPS = 20_000
LONGEST = 100.0  # virtual seconds after the last arrival in which everything must have ended, if nobody shuts down


class Storm:
    """One seeded run. `seen` counts what was reached; `trace` is the record that must be the same for the same seed."""

    def __init__(self, seed: int, requests: int = REQUESTS, verbose: bool = False) -> None:
        self.random = Random(seed)
        self.scheduler = Scheduler(Random(seed + 1))
        self.stations = world.stations(self.random, self.scheduler, Random(seed + 2))
        self.total = requests
        self.verbose = verbose
        self.now = 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.number = 0
        self.seen: Counter[str] = Counter()
        self.trace: list[str] = []
        self.books = Books(self.stations, self.scheduler.bypass)
        self.staged: dict[tuple[str, int], Work] = {}
        self.requests: list[Request] = []
        self.hot: Station | None = None

    def run(self) -> Storm:
        """To the end; raises AssertionError when a law is broken."""
        for station in self.stations:
            for replica in station.replicas:
                self.apply(self.scheduler.replica_up(station, replica.index, self.now), "up")
        at = 0.0
        flood = self.random.random() < 0.5  # calm at first, then all at once, and nearly all at one station
        if flood:
            self.hot = next((fairness.station for fairness in self.books.fair), self.random.choice(self.stations))
        for n in range(self.total):
            rates = (20.0, 200.0, 2000.0) if not flood else (20.0,) if n < world.CALM else (5000.0,)
            at += self.random.expovariate(self.random.choice(rates))
            self.at(at, "arrive", None)
        for _ in range(6):
            self.at(self.random.uniform(0, at), "fault", None)
        for what in ("scale", "scale", "scale", "press", "press"):
            self.at(self.random.uniform(0, at), what, None)
        if calm := self.random.random() < 0.3:
            self.at(at + LONGEST, "drain", None)
        else:
            self.at(at + self.random.uniform(-0.5, 2.0) * min(1.0, at), "drain", None)
        steps = 0
        while self.events or self.scheduler.wake_at < 1e9:
            steps += 1
            assert steps < MOST_STEPS, "the storm does not end"
            self.step()
        idle(self.scheduler)
        self.books.close(self.requests, at + LONGEST if calm else None)
        assert not self.staged, "staged work was forgotten"
        self.seen += self.books.moves
        return self

    def step(self) -> None:
        wake = self.scheduler.wake_at
        if self.events and self.events[0][0] <= wake:
            self.now, _, what, subject = heappop(self.events)
            getattr(self, f"do_{what}")(subject)
        else:
            self.now = max(self.now, wake)
            self.apply(self.scheduler.tick(self.now), "tick")
        check(self.scheduler, self.now)
        self.books.look(self.now)

    def at(self, when: float, what: str, subject: Any) -> None:
        self.number += 1
        heappush(self.events, (when, self.number, what, subject))

    # What happens

    do_scale, do_press, do_relief, do_item = changes.scale, changes.press, changes.relief, changes.item

    def do_arrive(self, _: None) -> None:
        station = self.random.choice(self.stations)
        if self.hot is not None and self.random.random() < 0.8:
            station = self.hot
        request = world.request(self.random, station, len(self.requests), self.now, self.stations)
        self.requests.append(request)
        commands = self.scheduler.submit(station, request, self.now)
        if station.direct and request.work is not None and Start(request.work) not in commands:
            self.begin(request.work)
        self.apply(commands, f"submit {request.id} to {station.name}")
        self.books.submitted(request)
        if self.random.random() < 0.25:
            self.at(self.now + self.random.expovariate(5.0), "leave", request)

    def do_leave(self, request: Request) -> None:
        if request.outcome:
            assert not self.scheduler.cancel(request, self.now), "a caller who left too late changed something"
            return
        self.seen[f"cancelled while {STATE_NAMES[request.state]}"] += 1
        work = request.work if request.state == RUNNING else None
        self.apply(self.scheduler.cancel(request, self.now), f"cancel {request.id}")
        self.ended(request)
        if work is not None and work.station.direct and not work.stopped:
            self.stop(work, measured=False)  # a body on the loop stops with its caller

    def do_finish(self, work: Work) -> None:
        if work in self.books.running:
            self.stop(work)

    def do_fault(self, _: None) -> None:
        station = self.random.choice([s for s in self.stations if s.replicas])
        index = self.random.randrange(len(station.replicas))
        indices = self.together(station, index)
        for each in indices:
            self.seen["crash"] += 1
            self.apply(self.scheduler.replica_down(station, each, self.now), f"crash {station.name}[{each}]")
        for each in indices:
            self.lose(station, each)
        if not any(replica.up for replica in station.replicas) and self.random.random() < 0.5:
            self.seen["given up"] += 1
            self.apply(self.scheduler.give_up(station, WorkerLost("for good"), self.now), f"give up {station.name}")
        at = self.now + self.random.uniform(0.0, 0.5)
        for each in indices:
            self.at(at, "restart", (station, each))

    def together(self, station: Station, index: int) -> list[int]:
        """The replicas that die with this one: all slots of its host."""
        if station.router is None:
            return [index]
        size = station.router.slots
        first = index - index % size
        self.seen["a host is lost"] += 1
        return list(range(first, min(first + size, len(station.replicas))))

    def lose(self, station: Station, index: int) -> None:
        """A replica died: what ran there is lost, what was staged there comes back."""
        key = (station.name, index)
        staged = self.staged.pop(key, None)
        if staged is not None:
            self.seen["crash with staged work"] += 1
            self.apply(self.scheduler.revoked(staged, self.now), "back")
        work = self.books.slots.get(key)
        if work is not None:
            self.seen["crash while running"] += 1
            self.stop(work, [WorkerLost("gone")] * len(work.requests), measured=False)

    def do_gone(self, where: tuple[Station, int]) -> None:
        self.scheduler.replica_gone(*where)

    def do_restart(self, where: tuple[Station, int]) -> None:
        self.apply(self.scheduler.replica_up(*where, self.now), f"restart {where[0].name}")

    def do_drain(self, _: None) -> None:
        self.apply(self.scheduler.drain(self.now), "drain")
        for station in self.stations:  # everything comes up again, so that what waits can end
            for replica in [each for each in station.replicas if not each.vacant]:
                self.at(self.now + 0.6, "restart", (station, replica.index))
        self.at(self.now + 5.0, "abort", None)

    def do_abort(self, _: None) -> None:
        self.apply(self.scheduler.abort(self.now), "abort")

    # Carrying out commands

    def apply(self, commands: Sequence[Command], why: str) -> None:
        queue = list(commands)
        self.note(f"{why}: {list(map(repr, commands))}")
        while queue:
            command = queue.pop(0)
            self.seen[type(command).__name__] += 1
            if isinstance(command, Start):
                self.begin(command.work)
            elif isinstance(command, Stage):
                self.seen["staged"] += 1
                self.staged[self.place(command.work)] = command.work
            elif isinstance(command, End):
                self.seen[type(command.error).__name__] += 1
                self.ended(command.request)
                self.stop_direct(command.request)
            elif isinstance(command, Revoke):
                queue += self.revoke(command.work)
            elif isinstance(command, Retire):
                slots = [(command.station.name, slot.index) for slot in command.station.host(command.replica)]
                assert not any(slot in self.books.slots for slot in slots), "it was put away while it ran"
                self.at(self.now + self.random.choice((0.0, 0.1)), "gone", tuple(command))
            elif isinstance(command, Stop) and self.random.random() < 0.5 and command.work in self.books.running:
                self.seen["stopped early"] += 1
                self.at(self.now, "finish", command.work)

    def stop_direct(self, request: Request) -> None:
        work = request.work
        if work is not None and work.station.direct and work in self.books.running:
            self.at(self.now, "finish", work)

    def revoke(self, work: Work) -> Sequence[Command]:
        key = self.place(work)
        if self.staged.get(key) is not work or self.random.random() < 0.2:
            self.seen["revoked too late"] += 1
            return ()  # its worker is about to take it
        del self.staged[key]
        self.seen["revoked"] += 1
        return self.scheduler.revoked(work, self.now)

    def begin(self, work: Work) -> None:
        """Work starts."""
        station = work.station
        self.seen[f"released: {work.reason}"] += 1
        self.books.started(work, self.now)
        if station.router is not None:
            self.seen[f"route: {type(station.router.route).__name__}"] += 1
            self.seen["a host warms up"] += station.router.host_of(work.replica).lost
        took = self.random.choice((0.001, 0.01, 0.05, 0.4)) * (1 + 0.02 * work.cost)
        if station.options.streams:
            for _ in range(self.random.randint(0, 4)):
                self.at(self.now + self.random.uniform(0, took), "item", work)
        self.at(self.now + took, "finish", work)

    def stop(self, work: Work, errors: Sequence[Any] | None = None, measured: bool = True) -> None:
        """Work has stopped; its worker takes what is staged in the same turn."""
        self.books.stopped(work)
        key = self.place(work)
        if errors is None and self.random.random() < 0.1:
            errors = [ValueError("bad") if self.random.random() < 0.5 else None for _ in work.requests]
            self.seen["failed"] += 1
        if any(isinstance(e, WorkerLost) for e in errors or ()):
            self.seen["lost"] += 1
        live = [r for r in work.requests if r.state == RUNNING]
        if work.lease:
            changes.measure(self, work)
        commands = self.scheduler.finish(work, self.now, errors, measured)
        for request in live:
            if request.outcome:
                self.ended(request)
            else:
                self.seen["retried"] += 1
                self.books.retried(request)
        taken = self.staged.pop(key, None)
        self.apply(commands, f"finish {work!r}")
        if taken is not None:
            commands = self.scheduler.taken(taken, self.now)
            self.begin(taken)
            self.seen["taken"] += 1
            self.apply(commands, "taken")

    def ended(self, request: Request) -> None:
        self.books.ended(request)
        self.seen[f"outcome: {request.outcome}"] += 1

    def place(self, work: Work) -> tuple[str, int]:
        return work.station.name, work.replica

    def note(self, line: str) -> None:
        text = f"{self.now:.6f} {line}"
        self.trace.append(text)
        if self.verbose:
            print(text)


def main() -> None:
    """Replay a storm."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, required=True)
    storm = Storm(parser.parse_args().seed, verbose=True).run()
    print(dict(storm.seen))


if __name__ == "__main__":
    main()
