"""Planted bugs that storms must find: a storm that cannot fail proves nothing."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from remote_storm import RemoteStorm

from penstock.core import (
    admission,
    dispatch,
    estimate,
    fleet,
    headroom,
    lease,
    pool,
    queues,
    replicas,
    retries,
    router,
    scheduler,
    station,
    streams,
    targets,
    timeouts,
    timers,
)
from penstock.core.policy import batch, breaker, limit, retry
from penstock.executors import inline, slots
from penstock.executors.child import stepper
from penstock.runtime import binding, call, compose, driver, stream
from penstock.runtime.replicas import Replicas
from penstock.sim.runtime_storm import RuntimeStorm
from penstock.sim.storm import Storm

SEEDS, RUNTIME_SEEDS, REMOTE_SEEDS = 400, 400, 200
# Where each was found last: tried first. Another seed will do as well, so a line that is out of date costs time and no more.
FOUND = dict(
    line.split(" ", 1)[::-1] for line in (Path(__file__).parent.parent / "seeds" / "mutations.txt").read_text().splitlines()
)


def mutant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function with one piece of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) >= 1, f"{function.__qualname__} has no {old!r} any more"
    names: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(code, "<mutant>", "exec"), function.__globals__, names)
    made = names[function.__name__]
    assert isinstance(made, FunctionType)
    return made


MUTATIONS = {
    "a forgotten slot": (dispatch, "give", "station.free.append(work.replica)", "pass"),
    "a pool that is not given back": (pool.PoolState, "give", "self.used - amount", "self.used"),
    "bytes that are leased twice": (lease, "lease", "pool.take(amount)", "pool.take(amount + amount)"),
    "a bypass without bound": (lease, "starved", "station.passed >= s.bypass", "False"),
    "a bypass that is not counted": (lease, "lease", "other.passed += 1", "pass"),
    "large ones behind their own small ones": (dispatch, "_form_varied", "first = starved(s, station)", "first = None"),
    "what is kept for one who has left": (lease, "left", "unblock(s, station)", "pass"),
    "what is kept for one who could not start": (lease, "kept", "or not _able(station, now)", ""),
    "what is kept for one who waits for no room": (lease, "_able", "station.ready_at(now) > now", "False"),
    "those who wait for what has lapsed": (lease, "barred", "s.barring or found", "s.barring"),
    "a place in line that is lost with each caller": (lease, "left", "if heir is not None:", "if False:"),
    "a start that nobody in line has noticed": (lease, "rivals", "need.pool is its.pool", "False"),
    "a budget that does not shrink": (pool.PoolState, "pressed", "self.effective = min", "_ = min"),
    "a budget that is whole again at once": (pool.PoolState, "pressed", "RECOVERY * self.capacity * elapsed", "self.capacity"),
    "a budget that stays small": (pool.PoolState, "pressed", "RECOVERY * self.capacity * elapsed", "0.0"),
    "a budget without what is leased": (pool.PoolState, "pressed", "self.used + max(0.0, free)", "max(0.0, free)"),
    "pressure that is not heeded": (
        pool.PoolState,
        "fits",
        "(self.effective if self.leases else self.capacity)",
        "self.capacity",
    ),
    "pressure that keeps everybody waiting": (
        pool.PoolState,
        "fits",
        "(self.effective if self.leases else self.capacity)",
        "self.effective",
    ),
    "a correction beyond the pool": (
        lease,
        "lease",
        "min(need.correction.factor * asked, need.pool.capacity)",
        "need.correction.factor * asked",
    ),
    "a lease without its correction": (
        pool.Need,
        "amount",
        "self.correction.factor * self.declared(requests)",
        "self.declared(requests)",
    ),
    "peaks that teach nothing": (lease, "learn", "need.correction.add(asked, peak)", "pass"),
    "peaks that teach the wrong way round": (
        estimate.Correction,
        "add",
        "(self.UP if off > 0 else self.DOWN)",
        "(self.DOWN if off > 0 else self.UP)",
    ),
    "a batch that is larger than what fits": (lease, "largest", "low = middle", "low = high"),
    "a budget that grows without waking": (scheduler.Scheduler, "pressure", "wake(self, list(self.line), now)", "pass"),
    "a batch that is larger than what is free": (dispatch, "_batch", "if station.variable and len(chosen) > 1:", "if False:"),
    "what can never fit": (admission, "never", "amount > pool.capacity", "False"),
    "a correction without bound": (estimate.Correction, "add", "min(max(peak / estimate, self.LEAST), self.MOST)", "9.0"),
    "a retired replica that gets work": (replicas, "retire", "down(s, station, replica.index, now)", "pass"),
    "a retired replica that stays": (dispatch, "give", "elif replica.leaving:", "elif False:"),
    "a retired replica that keeps its staged work": (replicas, "retire", "s.out.append(Revoke(replica.staged))", "pass"),
    "a place that is used before it is free": (
        replicas,
        "add",
        "all(replica.vacant for replica in host)",
        "all(replica.leaving for replica in host)",
    ),
    "a place that stays vacant": (
        replicas,
        "add",
        "replica.leaving = replica.gone = replica.vacant = False",
        "replica.leaving = replica.gone = False",
    ),
    "a retired replica that comes up late": (replicas, "up", "if replica.leaving:", "if False:"),
    "a replica put away while it runs": (dispatch, "vacate", "replica.work is None and replica.staged is None and", ""),
    "a host put away with its first empty slot": (dispatch, "vacate", "all(slot.gone for slot in host)", "True"),
    "a host of which some slots stay": (replicas, "retire", "station.host(index)", "station.host(index)[:1]"),
    "a host that comes back with some of its slots": (replicas, "add", "for n in range(size)", "for n in range(1)"),
    "what is produced and not charged": (station.Station, "settle", "self.queue.charge(request, request.owed)", "pass"),
    "a lost wake-up after an end": (scheduler.Scheduler, "finish", "if station.waiting:", "if False:"),
    "waiters of a pool that are forgotten": (scheduler.Scheduler, "finish", "*rivals(self, station)", ""),
    "a double end": (scheduler.Scheduler, "cancel", "in (ABANDONED, ENDED)", "in (99,)"),
    "an expired request that starts": (timeouts, "request_due", "now >= deadline", "False"),
    "bytes that stay counted": (station.Station, "dequeued", "self.queued_bytes -= request.size", "pass"),
    "staged work that is forgotten": (scheduler.Scheduler, "revoked", "back.append(request)", "pass"),
    "a gap that is not kept": (limit.RateState, "ready_at", "self.last + self.policy.min_gap", "now"),
    "a timer that is not armed": (scheduler.Scheduler, "check", "self.timers.add(at, station)", "pass"),
    "a bound that is not checked": (admission, "overfull", "queued >= bound.items", "False"),
    "a batch that mixes keys": (dispatch, "_batch", "if batch.key is not None else able", "if False else able"),
    "a batch that costs too much": (batch, "choose", "costs[n - 1] > most", "False"),
    "a request that stays in the queue": (scheduler.Scheduler, "leave_queue", "station.queue.remove(request)", "pass"),
    "a retry whose place is not kept": (retries, "retries", "station.set_apart([request], 1)", "pass"),
    "a lease that is counted twice": (dispatch, "take", "station.in_flight += 1", "station.in_flight += 2"),
    "an order that the hash decides": (
        station.Station,
        "requeue",
        "sorted(self.waiting, key=lambda r: r.queued)",
        "set(self.waiting)",
    ),
    "a deadline that is not armed": (timers.Timers, "date", "self.add(deadline, request)", "pass"),
    "a deadline that was noted and forgotten": (
        timers.Timers,
        "_look",
        "self.add(request.deadline, request)",
        "pass",
    ),
    "notes that nobody looks at": (timers.Timers, "date", "self.add(now + SOON, None)", "pass"),
    "a retry without its budget": (retry.RetryBudget, "withdraw", "self.tokens -= 1.0", "pass"),
    "a retry after the first output": (retries, "retries", "request.first is not None", "False"),
    "idling that earns credit": (
        queues.Ledger,
        "lift",
        "max(self.counters.get(tenant, 0.0), least)",
        "self.counters.get(tenant, 0.0)",
    ),
    "work that is not charged": (queues.Ledger, "charge", "+ cost / self.weight(tenant)", "+ 0.0"),
    "a staged work without its place": (dispatch, "give", "station.coming += 1", "pass"),
    "a dead replica that is free": (dispatch, "give", "elif replica.up:", "elif True:"),
    "a circle of waiting": (pool.LockOrder, "cycle", "return [source, *between, *chain]", "continue"),
    "a rate that is not kept": (limit.RateState, "started", "max(now, self.tat) + self.interval", "now"),
    "a host whose work stays counted": (router.Router, "stopped", "host.running -= 1", "pass"),
    "a host that is counted as down": (router.Router, "came_up", "host.up += 1", "pass"),
    "a slot of another host": (router.Router, "pick", "next(reversed(host.free))", "0"),
    "a slot that is left to nobody": (dispatch, "dispatch", "station.headroom.scarce(station, now)", "False"),
    "a slot that is taken without waiting": (headroom.Headroom, "bars", "not self.below(station, request.tenant)", "False"),
    "a slot that is held for ever": (headroom.Headroom, "stopped", "self.held[tenant] -= 1", "pass"),
    "a first item that lets nobody start": (streams, "produced", "dispatch(s, station, now)", "pass"),
    "a pace that lets nobody start": (streams, "paced", "dispatch(s, station, now)", "pass"),
    "a start that is under way after its first item": (
        targets.Targets,
        "first",
        "self.under_way - work.cost",
        "self.under_way",
    ),
    "a start that has stopped and is under way": (targets.Targets, "stopped", "self.under_way -= work.cost", "pass"),
    "a start into a long backlog": (station.Station, "ready_at", "self.targets.full and not nested", "False"),
    "a popped request that stays": (queues.SortedQueue, "pop", "self.head += 1", "pass"),
}


RUNTIME_MUTATIONS = {
    "an input that is let go too early": (binding.Binding, "record", "if r.state == ENDED:", "if True:"),
    "work that is revoked before its callers are told": (
        driver.Runtime,
        "apply",
        "back.append(command)",
        "self._apply_rarer(command)",
    ),
    "a batch that is cancelled before its first step": (
        inline.InlineExecutor,
        "run",
        "task.add_done_callback(lambda _: self._unbegun(work))",
        "pass",
    ),
    "a line that is not written": (binding.Binding, "finished", "self.record(call, error)", "pass"),
    "a line that is written twice": (
        binding.Binding,
        "abandon",
        "self.record(call, None)",
        "self.record(call, None); request.item = call; self.record(call, None)",
    ),
    "a caller who is not told of the end": (call.BoundCall, "fail", "self.future.set_exception(error)", "pass"),
    "a turn that is not told": (call.BoundCall, "go", "self.future.set_result(None)", "pass"),
    "a stream that keeps its lease": (stream, "_pull", "binding.stopped(call, failure)", "pass"),
    "a stream whose reader has left": (stream, "_receive", "binding.abandon(call)", "pass"),
    "a reader who is not waited for": (binding.Binding, "resume", "self.executor.resume(work, 1)", "pass"),
    "a timer that is armed once": (driver.Runtime, "_tick", 'self.armed = float("inf")', "pass"),
    "a slot of another model": (slots.SlotsExecutor, "_at", "divmod(work.replica, self.slots.size)", "0, work.replica"),
    "a slot that is not emptied": (stepper.Stepper, "_end", "self.drops.append(slot)", "pass"),
    "a slot that is given away while it is stepped": (stepper.Stepper, "_end", "self.stepping.pop(slot, None)", "pass"),
    "a request that nobody wants and that goes on": (stepper.Stepper, "leave", "self._end", "_ = lambda *_: None; _"),
    "a slot that does not pause": (stepper.Stepper, "_full", "self.stepping.pop(slot, None)", "pass"),
    "a slot that stays paused": (stepper.Stepper, "acknowledge", "self.stepping[slot] = 1", "pass"),
    "an end that is not told": (stepper.Stepper, "_end", "self.ends.append((seat.key, result))", "pass"),
    "items that are told twice": (stepper.Stepper, "take", "self.items, self.ends = [], []", "self.ends = []"),
    "a start beyond what is left of it": (stepper.Stepper, "plan", "min(seat.left, room)", "room"),
    "starts beyond the budget of a step": (stepper.Stepper, "plan", "room -= units", "pass"),
    "a failed step that ends only one": (stepper.Stepper, "fail", "for slot in plan:", "for slot in list(plan)[:1]:"),
    "a model that is put away without its stop": (
        slots.SlotsExecutor,
        "shrink",
        'engine.tell(("stop", 0, None, None))\n    await asyncio.shield(engine.ended)',
        "pass",
    ),
    "a model that nobody waits for when it is put away": (
        slots.SlotsExecutor,
        "shrink",
        "await asyncio.shield(engine.ended)",
        "pass",
    ),
    "a slot's number for a model's when it is put away": (Replicas, "_put_away", "index // station.slots", "index"),
    "a retired replica that its executor keeps": (
        Replicas,
        "_put_away",
        "await executor.shrink(index // station.slots)",
        "pass",
    ),
    "a place that is not free again": (Replicas, "_gone", "self.runtime.scheduler.replica_gone(station, index)", "pass"),
    "a replica that did not load and is counted": (Replicas, "_grow", "self._retire(binding, index)", "pass"),
    "more replicas than were asked for": (Replicas, "scale", "range(missing)", "range(missing + 1)"),
    "replicas that are too many and stay": (Replicas, "scale", "self._retire(binding, index)", "pass"),
    "a roll that keeps the old ones": (Replicas, "roll", "self._retire(binding, index)", "pass"),
    "a roll that does not wait for the old one to go": (Replicas, "roll", "await asyncio.shield(away)", "pass"),
    "two changes at once": (Replicas, "_lock", "self._locks.setdefault(binding, asyncio.Lock())", "asyncio.Lock()"),
    "a join that leaves the others running": (
        compose,
        "join",
        "for task in tasks:\n            if isinstance(task, BoundCall) and not isinstance(error, asyncio.CancelledError):\n"
        "                task.withdraw()\n            else:\n                task.cancel()\n"
        "        await asyncio.gather(*tasks, return_exceptions=True)",
        "pass",
    ),
    "a callback that disturbs": (call.BoundCall, "_when_done", "except Exception:", "except ZeroDivisionError:"),
}


REMOTE_MUTATIONS = {
    "failures that are never forgotten": (fleet.Fleet, "answered", "member.failed = 0", "pass"),
    "a failure that is not counted": (fleet.Fleet, "failed", "member.failed += 1", "pass"),
    "a failure of before the trial": (fleet.Fleet, "failed", "began < member.began or ", ""),
    "a trial with all connections": (fleet.Fleet, "slots", "return 1 if member.state is TRIED else every", "return every"),
    "a trial that fails and goes on": (fleet.Fleet, "failed", "if member.state is TRIED:", "if False:"),
    "a trial of one call": (fleet.Fleet, "answered", "member.good < self.breaker.trials", "False"),
    "an ejected remote that gets work": (fleet.Fleet, "slots", "or member.state is EJECTED", ""),
    "an unhealthy remote that gets work": (fleet.Fleet, "slots", "not member.healthy or ", ""),
    "ejections without bound": (fleet.Fleet, "_eject", "if out >= self.most:", "if False:"),
    "ejections beside the unhealthy": (fleet.Fleet, "_eject", "(m.state is EJECTED or not m.healthy)", "m.state is EJECTED"),
    "ejected ones that stay out beside the unhealthy": (
        fleet.Fleet,
        "_relieve",
        "max(0, unhealthy + len(ejected) - self.most)",
        "0",
    ),
    "ejections that do not get longer": (breaker.Breaker, "out", "2.0 ** (min(ejections, 60) - 1)", "1.0"),
    "ejections that are never forgiven": (fleet.Fleet, "_eject", "member.ejections = 0", "pass"),
    "an ejection without end": (fleet.Fleet, "_eject", "self._rewake()", "pass"),
    "slowness that nobody notices": (fleet.Fleet, "_slow", "seconds > self.breaker.slow * usual", "False"),
    "slowness by a moment": (fleet.Fleet, "_slow", "seconds > self.breaker.slow * usual and", ""),
    "one bad check": (fleet.Fleet, "checked", "or member.checks >= _FALLS", "or True"),
    "a share that is whole at once": (router.Router, "_takes", "if share >= 1:", "if True:"),
    "a share that grows from the start": (router.Router, "came_up", "host.since = now", "pass"),
    "a return that is not noticed": (router.Router, "went_down", "host.lost = True", "pass"),
    "a turn that is taken and not spent": (router.Router, "_takes", "host.credit -= 1", "pass"),
    "turns that a full remote catches up on": (router.Router, "pick", "self.turn = max(self.turn, host.spent)", "pass"),
    "a retry that goes back": (router.Router, "pick", "if host.index not in tried", "if True"),
    "a retry that remembers only the last": (retries, "retries", "(*request.failed_on, work.replica)", "(work.replica,)"),
    "what was not sent and pays": (retries, "retries", "(begun and not _paid(station))", "not _paid(station)"),
    "what was not sent and is given up": (router.Router, "elsewhere", "return any", "return False and any"),
    "what was not sent and is tried for ever": (router.Router, "elsewhere", "and host.index not in tried", ""),
    "what was sent and does not pay": (retries, "_paid", "station.retry.withdraw()", "True"),
    "attempts without bound": (retries, "_may_run_again", "request.attempts < policy.attempts", "True"),
}


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, old: str, new: str) -> None:
    original = getattr(owner, function)
    made = mutant(original, old, new)
    monkeypatch.setattr(owner, function, made)
    for module in list(sys.modules.values()):  # functions that were imported by name
        if getattr(module, "__name__", "").startswith("penstock") and getattr(module, function, None) is original:
            monkeypatch.setattr(module, function, made)


def breaks(storm: Callable[[int], Any], seed: int) -> bool:
    try:
        storm(seed).run()
    except (Exception, asyncio.CancelledError):
        return True
    return False


def found(storm: Callable[[int], Any], seeds: int, name: str) -> bool:
    return any(breaks(storm, seed) for seed in (int(FOUND.get(name, 0)), *range(seeds)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_storm_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *MUTATIONS[name])
    assert found(Storm, SEEDS, name), f"{SEEDS} storms did not notice: {name}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNTIME_MUTATIONS)
def test_a_runtime_storm_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *RUNTIME_MUTATIONS[name])
    noticed = found(RuntimeStorm, RUNTIME_SEEDS, name)
    gc.collect()  # the callers of a storm that broke off, while warnings are still ignored
    assert noticed, f"{RUNTIME_SEEDS} storms did not notice: {name}"


@pytest.mark.parametrize("name", REMOTE_MUTATIONS)
def test_a_storm_of_remotes_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *REMOTE_MUTATIONS[name])
    assert found(RemoteStorm, REMOTE_SEEDS, name), f"{REMOTE_SEEDS} storms did not notice: {name}"
