"""Laws of a runtime that its scheduler alone cannot see: how far streams run ahead, and what becomes of retired replicas."""

from __future__ import annotations

from penstock.executors.slots import SlotsExecutor
from penstock.runtime.binding import Binding
from penstock.runtime.driver import Runtime
from penstock.sim.place import SimulatedExecutor

_AWAY = 1.0  # virtual seconds that putting away a replica which runs nothing may take


class Laws:
    """Looks after every turn of a storm's loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.wanted: dict[Binding, int] = {}  # replicas, as whoever scaled last was told
        self.before: dict[Binding, set[int]] = {}  # hosts that were leaving already when a roll began
        self.empty: dict[tuple[str, int], float] = {}  # since when a retired host runs nothing

    def look(self, now: float) -> None:
        """Raise AssertionError if a law is broken at this instant."""
        for binding in self.runtime.bindings.values():
            if isinstance(binding.executor, SlotsExecutor | SimulatedExecutor):
                if binding.streams:
                    self._ahead(binding, binding.executor)
                if not self.runtime.closing:
                    self._retired(binding, binding.executor, now)
                    self._counted(binding, binding.executor)

    def scaled(self, binding: Binding, count: int, whole: bool) -> None:
        """A change to so many replicas came to its end; unless that was its `whole` end, only some may have been added."""
        if not self.runtime.closing:
            before, found = self.wanted[binding], self.runtime.replicas.state(binding).wanted
            right = found == count or (not whole and before <= found < count) or (not whole and found == before)
            assert right, f"{binding.name} was scaled from {before} to {count} replicas and has {found}"
            self.wanted[binding] = found

    def _ahead(self, binding: Binding, executor: SlotsExecutor | SimulatedExecutor) -> None:
        """No stream is further ahead of its reader than its buffer, however slow that is."""
        most = executor.buffer if isinstance(executor, SlotsExecutor) else executor.window
        for work in binding.station.running:
            call = work.requests[0].item
            if call is not None:
                count = len(call.stream.items)
                assert count <= most, f"{call!r} is {count} items ahead of its reader, of at most {most}"

    def _retired(self, binding: Binding, executor: SlotsExecutor | SimulatedExecutor, now: float) -> None:
        """A retired replica is put away soon after it has run its last, and its place is not free before that."""
        station = binding.station
        for first in range(0, len(station.replicas), station.slots):
            host, where = station.host(first), (binding.name, first)
            if host[0].vacant:
                assert not _loaded(executor, first), f"{where} was put away, and its model goes on"
            if all(slot.gone and not slot.vacant for slot in host):
                since = self.empty.setdefault(where, now)
                assert now - since <= _AWAY, f"{where} runs nothing since {since:.3f} and was not put away"
            else:
                self.empty.pop(where, None)

    def _counted(self, binding: Binding, executor: SlotsExecutor | SimulatedExecutor) -> None:
        """There are as many replicas as were asked for, all of them loaded; a roll has one more, and lets one go at a time."""
        station, state = binding.station, self.runtime.replicas.state(binding)
        hosts = [station.host(first) for first in range(0, len(station.replicas), station.slots)]
        leaving = {host[0].index for host in hosts if host[0].leaving and not host[0].vacant}
        if not state.change.startswith("rolling"):
            self.before[binding] = leaving
            if state.change:
                return
            for host in hosts:
                assert host[0].leaving or _loaded(executor, host[0].index), f"{binding.name}[{host[0].index}] is not there"
        self.before[binding] &= leaving
        assert len(leaving - self.before[binding]) <= 1, f"{binding.name}: {leaving} go at once"
        count = self.wanted.setdefault(binding, state.wanted)
        assert state.wanted == count, f"{binding.name} has {state.wanted} replicas, not {count} ({state.change})"


def _loaded(executor: SlotsExecutor | SimulatedExecutor, first: int) -> bool:
    """Whether what fills this place has been loaded and not yet stopped."""
    if isinstance(executor, SlotsExecutor):
        engine = executor.engines[first // executor.slots.size]
        return engine.model is not None and not engine.ended.done()
    return executor.slots[first].loaded
