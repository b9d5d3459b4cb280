"""Storms of remotes: slow, failing and gone at random, with accounts of their own of who was ejected, tried and spared."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from remote_world import SECONDS, Fault, World

from penstock.core.fleet import EJECTED, SERVING, TRIED, UNHEALTHY, Change
from penstock.core.policy.breaker import Breaker
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import LeastConnections, LeastCost, RoundRobin, TwoChoices
from penstock.core.request import RUNNING, Request, Work
from penstock.errors import ServiceError

FAULTS_END, UNTIL = 6.0, 12.0
FEW = Retry(attempts=3, base=0.005, cap=0.1, budget=0.1, reserve=2.0, on=(ServiceError,))
KINDS: list[dict[str, Any]] = [{"factor": 10.0}, {"fails": True}, {"fails": True, "factor": 50.0}, {"gone": True}]


class Account:
    """What a storm has seen of one remote."""

    def __init__(self) -> None:
        self.state = SERVING
        self.healthy = True
        self.since = 0.0  # when it came to serve or to be tried; calls that began before say nothing about it
        self.failures = self.good = 0  # in a row, since then
        self.ejections = 0  # in a row
        self.out_at = 0.0
        self.seconds: list[float] = []  # of its answers since then
        self.checks = 0  # failed ones in a row
        self.warm_since: float | None = None  # it has come back
        self.offered = self.taken = 0  # starts of all, and its own, while it warms up


class RemoteStorm(World):
    """One seeded run; laws are asserted where things happen."""

    slots, slow_start = 4, 1.0
    breaker = Breaker(failures=4, window=8, eject=0.5, longest=1.5, trials=2)

    def __init__(self, seed: int) -> None:
        dice = Random(seed)
        count = dice.choice((2, 3, 4))
        faults = []
        for remote in range(count):
            for _ in range(dice.choice((0, 1, 2))):
                start = dice.uniform(0.5, FAULTS_END - 1.0)
                faults.append(Fault(remote, start, min(FAULTS_END, start + dice.uniform(0.1, 3.0)), **dice.choice(KINDS)))
        self.accounts = [Account() for _ in range(count)]
        self.failed: dict[Request, list[int]] = {}
        self.begun: dict[Request, int] = {}  # failures of calls that had been sent
        self.calls = self.retries = 0
        route = dice.choice((LeastCost(), LeastConnections(), RoundRobin(), TwoChoices()))
        retry = dice.choice((FEW, FEW, None))
        super().__init__(seed, route, faults, dice.choice((30.0, 100.0)), UNTIL, count, retry)
        if dice.random() < 0.5:
            for n in range(int(UNTIL / 0.3)):
                for remote in range(count):
                    self.at(0.3 * n + 0.01 * remote, "probe", remote)

    def run(self) -> RemoteStorm:
        super().run()
        for index, account in enumerate(self.accounts):
            assert account.healthy and account.state == SERVING, f"remote {index} is {account.state} for good"
        return self

    def probe(self, remote: int) -> None:
        account = self.accounts[remote]
        gone = any(f.gone and f.remote == remote and f.start <= self.now < f.end for f in self.faults)
        gone = gone or (self.now < FAULTS_END and self.random.random() < 0.1)
        account.checks = account.checks + 1 if gone else 0
        self.changed(self.fleet.checked(remote, "it cannot be reached" if gone else "", self.now))
        assert account.healthy == (account.checks < 2), f"remote {remote}: {account.checks} checks in a row failed"

    def arrive(self, _: None) -> None:
        self.calls += 1
        super().arrive(_)

    def begin(self, work: Work) -> None:
        remote, request = work.replica // self.slots, work.requests[0]
        running = [each for each in self.station.running if each.replica // self.slots == remote]
        account = self.accounts[remote]
        assert account.healthy and account.state != EJECTED, f"remote {remote} is out and gets work"
        if account.state == TRIED:
            since = [each for each in running if each.started > account.since]
            assert len(since) <= 1, f"remote {remote} is tried with {len(since)} calls at once"
        spared = [n for n in range(len(self.accounts)) if n not in self.failed.get(request, ()) and self.has_room(n)]
        assert remote not in self.failed.get(request, ()) or not spared, f"{request!r} goes back to {remote}, not to {spared}"
        self.warm(remote, self.failed.get(request, ()))
        super().begin(work)

    def has_room(self, remote: int) -> bool:
        slots = self.station.replicas[remote * self.slots : (remote + 1) * self.slots]
        return any(slot.up and slot.work is None for slot in slots)

    def warm(self, remote: int, failed: Sequence[int]) -> None:
        """One that comes back gets a share that grows from a tenth to its own over `slow_start` seconds, if others have room."""
        warm = [n for n, each in enumerate(self.accounts) if each.state == SERVING and each.warm_since is None]
        spare = any(n == remote or self.has_room(n) for n in warm if n not in failed)
        for index, account in enumerate(self.accounts):
            if account.warm_since is None or account.state != SERVING:
                continue
            age = (self.now - account.warm_since) / self.slow_start
            if age >= 1:
                account.warm_since = None
            elif spare:
                account.offered += 1
                account.taken += index == remote
                most = 2 + max(0.1, age) * account.offered
                assert account.taken <= most, f"remote {index} took {account.taken} of {account.offered} at {age:.2f}"

    def stop(self, what: tuple[Work, Any]) -> None:
        work, error = what
        remote, request = work.replica // self.slots, work.requests[0]
        account, began = self.accounts[remote], work.started
        counts = began >= account.since and account.state != EJECTED
        if counts and error is None:
            account.failures = 0
            account.good += 1
            account.seconds.append(self.now - began)
        elif counts:
            account.failures += 1
            account.good = 0
        out = sum(each.state == EJECTED or not each.healthy for n, each in enumerate(self.accounts) if n != remote)
        due = counts and error is not None and (account.state == TRIED or account.failures >= self.breaker.failures)
        live = request.state == RUNNING
        if error is not None:
            self.begun[request] = self.begun.get(request, 0) + error.begun
            self.failed.setdefault(request, []).append(remote)
        super().stop(what)
        if due and out < self.fleet.most:
            assert account.state == EJECTED, f"remote {remote} failed {account.failures} times in a row and is {account.state}"
        if live and error is not None:
            self.again(request, error.begun)
        self.slow(remote)

    def again(self, request: Request, begun: bool) -> None:
        """It failed: whether it ran for the last time."""
        ended, retry = bool(request.outcome), self.station.options.retry
        if not begun:
            up = {n for n in range(len(self.accounts)) if self.fleet.slots(n, self.slots)}
            assert ended == (up <= {*self.failed[request]}), f"{request!r} was not sent, ended={ended}; {up} take work"
        elif not ended:
            self.retries += 1
            allowed = 2 + 0.1 * self.calls
            assert retry is not None and self.begun[request] < 3, f"{request!r} runs for the {self.begun[request] + 1}. time"
            assert self.retries <= allowed, f"{self.retries} retries"

    def slow(self, remote: int) -> None:
        """One that has long been slow, where others are not, is out."""
        window, account = self.breaker.window, self.accounts[remote]
        others = [each.seconds[-window:] for each in self.accounts if each is not account and each.state == SERVING]
        known = bool(others) and all(len(each) == window and max(each) < 2 * SECONDS for each in others)
        latest = account.seconds[-3 * window :]
        if account.state == SERVING and account.healthy and known and len(latest) == 3 * window:
            out = sum(each.state == EJECTED or not each.healthy for each in self.accounts if each is not account)
            assert min(latest) < 6 * SECONDS or out >= self.fleet.most, f"remote {remote} is slow and serves"

    def follow(self, index: int) -> None:
        super().follow(index)
        has = sum(slot.up for slot in self.station.replicas[index * self.slots : (index + 1) * self.slots])
        assert has == self.fleet.slots(index, self.slots), f"remote {index} has {has} slots up"

    def changed(self, changes: Any) -> None:
        for change in changes:
            self.note(change)
        super().changed(changes)
        unhealthy = sum(not each.healthy for each in self.accounts)
        ejected = sum(each.healthy and each.state == EJECTED for each in self.accounts)
        assert not ejected or ejected + unhealthy <= self.fleet.most, f"{ejected} are ejected beside {unhealthy} unhealthy"

    def note(self, change: Change) -> None:
        account, now = self.accounts[change.member], self.now
        out = sum(each.state == EJECTED or not each.healthy for each in self.accounts if each is not account)
        if change.state == UNHEALTHY:
            account.healthy = False
            return
        if change.state == account.state:  # it is healthy again
            assert not account.healthy
            account.healthy, account.since = True, now
            account.failures = 0
            if account.state == SERVING:
                self.cold(account)
        elif change.state == EJECTED:
            assert out < self.fleet.most, "too many are ejected"
            if account.state == SERVING:
                usual = sorted(account.seconds[-self.breaker.window :])
                slow = bool(usual) and usual[len(usual) // 2] > 2 * SECONDS
                assert account.failures >= self.breaker.failures or slow, f"remote {change.member} is ejected for nothing"
                if now - account.since > 2 * self.out(account.ejections or 1):
                    account.ejections = 0
            else:
                slow = bool(account.seconds) and account.seconds[-1] > 2 * SECONDS
                assert account.failures or slow, f"remote {change.member} is ejected again for nothing"
            account.ejections += 1
            account.out_at = now
        elif change.state == TRIED:
            assert account.state == EJECTED
            whole = abs(now - account.out_at - self.out(account.ejections)) < 1e-6
            crowded = out + 1 > self.fleet.most and now - account.out_at < self.out(account.ejections)
            assert whole or crowded, f"remote {change.member} is tried after {now - account.out_at:.2f} s"
        else:
            assert account.state == TRIED and account.good >= self.breaker.trials, f"remote {change.member} is back too early"
            self.cold(account)
        if change.state != account.state:
            account.state = change.state
            account.failures = account.good = 0
            account.seconds.clear()
            if change.state != SERVING:
                account.since = now

    def out(self, ejections: int) -> float:
        return min(self.breaker.longest, self.breaker.eject * 2 ** (ejections - 1))

    def cold(self, account: Account) -> None:
        """It is back, and warms up from now on."""
        account.warm_since, account.offered, account.taken = self.now, 0, 0
