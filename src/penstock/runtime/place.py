"""Where a service runs and how much of it: what its declaration and the machine's table come to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.core.policy.admit import Queue
from penstock.core.policy.limit import AIMD
from penstock.core.policy.order import FairShare, Order, Priority
from penstock.core.policy.retry import Retry
from penstock.core.policy.scale import Elastic, Scale
from penstock.core.station import StationOptions
from penstock.errors import ConfigError, Refused, ServiceError
from penstock.executors.base import Executor, Inline, Place, Process, Thread, fewest
from penstock.executors.remote_place import Remote
from penstock.runtime.sizes import Sizes, usable_cores
from penstock.service import Service

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding
    from penstock.runtime.driver import Runtime


# Of remotes: what one could not do, or refused to, another may.
_ELSEWHERE = Retry(attempts=3, base=0.005, cap=0.1, budget=0.1, reserve=20.0, on=(ServiceError, Refused))


def station_options(service: Service[..., Any], runtime: Runtime, defaults: Sizes) -> tuple[StationOptions, Place]:
    """The station that a service's options and the machine's table ask for."""
    options, body = service.options, service.body
    place: Place = options.on or (Inline() if body.is_async else Thread())
    if runtime.inline and isinstance(place, Process):
        place = Inline(place.replicas) if body.is_async else Thread(place.replicas)
    if isinstance(place, Inline):
        replicas = fewest(place.replicas) if body.batched or body.steps else None
    elif isinstance(place, Thread):
        replicas = fewest(place.replicas or (1 if body.is_class or body.batched else defaults.threads))
    else:
        replicas = fewest(place.replicas)
    scale: Scale | Elastic | None = None
    if isinstance(place.replicas, Scale) and replicas is not None:
        scale = place.replicas
    elif replicas and thread_for_each(service, place) and runtime.place is None:
        scale = Elastic(minimum=replicas)
    hosts: tuple[str, ...] = ()
    if isinstance(place, Remote):
        hosts = tuple(place.urls)
    elif replicas is not None and (size := slots_of(service, place)) is not None:
        hosts = tuple(map(str, range(replicas)))
        replicas *= size
    queue = next((policy for policy in options.admit if isinstance(policy, Queue)), None)
    if queue is None:
        least = 0 if options.batch is None else 2 * options.batch.max_size
        queue = Queue() if defaults.queue_items is None else Queue(items=max(defaults.queue_items, least))
    needs = tuple((runtime.budgets.state(pool), amount) for pool, amount in (options.needs or {}).items())
    return (
        StationOptions(
            name=service.name,
            replicas=replicas,
            queue=queue,
            order=_weighted(options.order or Priority(), runtime.weights),
            limits=(AIMD(),) if options.limit is None else options.limit,
            batch=options.batch,
            retry=_ELSEWHERE if options.retry is None and options.safe and isinstance(place, Remote) else options.retry,
            needs=needs,
            scale=scale,
            safe=bool(options.safe),
            streams=body.streams or body.steps,
            stage=body.batched and not isinstance(place, Inline | Remote),
            route=options.route,
            hosts=hosts,
            slow_start=place.slow_start if isinstance(place, Remote) else 0.0,
            start_timeout=options.start_timeout or defaults.start_timeout,
            progress_timeout=options.progress_timeout or defaults.progress_timeout,
        ),
        place,
    )


def slots_of(service: Service[..., Any], place: Place) -> int | None:
    """How many calls a replica runs at once, each in a slot of its own; None where a replica runs one work at a time."""
    if service.options.slots is not None:
        return service.options.slots.size
    return place.concurrency if isinstance(place, Process) and place.concurrency > 1 else None


def thread_for_each(service: Service[..., Any], place: Place) -> bool:
    """Whether each stream has a thread: that of a plain generator mostly waits, so there are as many as are open."""
    return service.body.streams and not service.body.is_class and place == Thread()


def _weighted(order: Order, weights: dict[str, float] | None) -> Order:
    """The order with the tenants' weights, where it is fair between them and does not say its own."""
    if weights is None:
        return order
    if isinstance(order, Priority) and isinstance(order.then, FairShare) and not order.then.weights:
        return replace(order, then=replace(order.then, weights=weights))
    return replace(order, weights=weights) if isinstance(order, FairShare) and not order.weights else order


def make_executor(binding: Binding) -> Executor:
    """The executor for where the service runs."""
    service, loop = binding.service, binding.runtime.loop
    place, replicas, buffer = binding.place, len(binding.station.replicas), service.options.buffer
    if binding.runtime.place is not None:
        executor = binding.runtime.place(service.body, binding, loop, replicas)
        if executor is not None:
            return executor
    slots = service.options.slots
    if isinstance(place, Process) and slots_of(service, place) is not None:
        from penstock.executors.process_slots import ProcessSlotsExecutor

        limit, threads, tpot = binding.station.progress_timeout, _threads(place), binding.station.targets.tpot
        return ProcessSlotsExecutor(
            service.body, binding, loop, slots, place, threads, buffer=buffer, progress_timeout=limit, tpot=tpot
        )
    if slots is not None:
        from penstock.executors.slots import SlotsExecutor

        tpot = binding.station.targets.tpot
        return SlotsExecutor(service.body, binding, loop, slots, replicas // slots.size, buffer=buffer, tpot=tpot)
    if isinstance(place, Thread):
        from penstock.executors.thread import ThreadExecutor

        return ThreadExecutor(service.body, binding, loop, replicas, buffer=buffer)
    if isinstance(place, Inline):
        from penstock.executors.inline import InlineExecutor

        return InlineExecutor(service.body, binding, loop, replicas)
    if isinstance(place, Process):
        from penstock.executors.process import ProcessExecutor

        limit, safe, threads = binding.station.progress_timeout, service.options.safe, _threads(place)
        measure = any(need.pool.device == "host" for need in binding.station.needs)
        return ProcessExecutor(
            service.body,
            binding,
            loop,
            place,
            threads,
            buffer=buffer,
            progress_timeout=limit,
            safe=safe,
            measure=measure,
        )
    if isinstance(place, Remote):
        from penstock.executors.remote import RemoteExecutor

        signature, clock = service.signature, binding.runtime.clock
        return RemoteExecutor(
            service.body, binding, loop, place, signature, clock, buffer=buffer, safe=bool(service.options.safe)
        )
    raise ConfigError(f"{service.name}: on={place!r} is not a place to run")


def _threads(place: Process) -> int:
    return place.threads or max(1, usable_cores() // fewest(place.replicas))
