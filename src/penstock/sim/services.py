"""A random application: one service of every kind, with random policies, that fail now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

from penstock.core.policy.admit import Latest, Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import Fixed, Rate
from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Priority
from penstock.core.policy.retry import Retry
from penstock.core.policy.slots import Slots
from penstock.core.pool import Pool
from penstock.executors.base import Inline, Thread
from penstock.runtime import join, within
from penstock.runtime import map as map_calls
from penstock.service import Service, service
from penstock.sim.models import Bad, Painter, Speaker, pause


def answer(x: int) -> int:
    """What every body computes; a seventh of all inputs is bad."""
    if x % 7 == 3:
        raise Bad(x)
    return 2 * x


def _options(random: Random, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "order": random.choice((None, Fifo(), EarliestDeadline(), FairShare(), Priority(age=0.3))),
        "start_timeout": random.choice((None, None, 1.0)),
        "progress_timeout": random.choice((None, None, 1.0)),
        **more,
    }
    if random.random() < 0.3:
        options["limit"] = random.choice((Fixed(1), Fixed(3), Rate(per_second=100.0, burst=2), (Fixed(2), Rate(min_gap=0.002))))
    return options


def _threads(random: Random, pool: Pool) -> dict[str, Any]:
    """Options of a body that runs on replicas."""
    safe = random.random() < 0.6
    return _options(
        random,
        on=Thread(replicas=random.choice((1, 2, 3))),
        admit=Queue(items=random.choice((8, 100)), size_bytes=1000),
        safe=safe,
        retry=Retry(base=0.01) if safe else None,
        needs=_needs(random, pool),
    )


def _slots(random: Random, pool: Pool, stream: bool = True) -> dict[str, Any]:
    """Options of a model that advances in steps; the budget makes its steps the same for the same seed."""
    size = random.choice((1, 2, 3))
    slots = Slots(size, budget=size + random.choice((0, 4)), stream=stream, slow=random.choice(("pause", "pause", "drop")))
    return {
        **_options(random),
        "batch": slots,
        "on": Inline(replicas=random.choice((1, 2))),
        "admit": Queue(items=random.choice((8, 100))),
        "needs": _needs(random, pool),
        "buffer": random.choice((2, 4, 64)),
    }


def _needs(random: Random, pool: Pool) -> dict[Pool, Any] | None:
    """A part of the pool, or as much as the inputs say."""
    if random.random() < 0.6:
        return None
    return {pool: random.choice((1.0, _amount, _amount))}


def _amount(inputs: int | list[int]) -> float:
    """Of one call, or of all of a batch."""
    return 0.1 * sum(inputs) if isinstance(inputs, list) else 0.1 * inputs


def _batch(random: Random) -> Batch:
    cost = random.random() < 0.3
    return Batch(
        max_size=random.choice((2, 4, 8)),
        max_wait=random.choice((0.0, 0.005)),
        cost=(lambda items: float(len(items) * max(items, default=0) + 1)) if cost else None,
        max_cost=300.0 if cost else float("inf"),
        key=(lambda x: bool(x % 2)) if random.random() < 0.3 else None,
    )


def _leaves(random: Random, pool: Pool) -> list[Service[..., Any]]:
    async def echo(x: int) -> int:
        await pause(random)
        return answer(x)

    async def newest(x: int) -> int:
        await pause(random)
        return answer(x)

    def crunch(x: int) -> int:
        return answer(x)

    class Model:
        def __call__(self, x: int) -> int:
            return answer(x)

    def embed(xs: list[int]) -> list[Any]:
        if len(xs) == 3 and random.random() < 0.2:
            return xs[1:]  # the wrong number
        return [Bad(x) if x % 7 == 3 else 2 * x for x in xs]

    async def collect(xs: list[int]) -> list[Any]:
        await pause(random)
        if random.random() < 0.05:
            raise Bad(xs)
        return [2 * x for x in xs]

    async def count(x: int) -> AsyncIterator[int]:
        for n in range(x % 5):
            await pause(random)
            yield n
        answer(x)

    def tokens(x: int) -> Iterator[int]:
        yield from range(x % 12)
        answer(x)

    speaks, paints = _slots(random, pool), _slots(random, pool, stream=False)
    return [
        service(echo, **_options(random)),
        service(newest, **{**_options(random), "limit": Fixed(1), "admit": Latest(key=lambda x: x % 2)}),
        service(crunch, **_threads(random, pool)),
        service(Model, **_threads(random, pool)),
        service(embed, batch=_batch(random), **_threads(random, pool)),
        service(collect, batch=_batch(random), **_options(random, on=Inline(replicas=random.choice((1, 2))))),
        service(count, **_options(random)),
        service(tokens, **_threads(random, pool)),
        service(Speaker, random, speaks["batch"].budget, **speaks),
        service(Painter, random, paints["batch"].budget, **paints),
    ]


def application(random: Random) -> dict[str, Service[..., Any]]:
    """All services by name: the leaves, and bodies that call them."""
    leaves = {each.name: each for each in _leaves(random, Pool("memory", random.choice((1.0, 2.0, 4.0))))}
    echo, crunch, embed, tokens = (leaves[name] for name in ("echo", "crunch", "embed", "tokens"))

    async def graph(x: int) -> int:
        a, b = await join(crunch(x), embed(x + 1))
        return await within(random.choice((0.02, 5.0)), lambda: echo(a + b))

    async def chain(x: int) -> AsyncIterator[int]:
        async for item in tokens(x):
            yield item + await crunch(x)

    async def many(x: int) -> int:
        total = 0
        async for each in map_calls(crunch, range(x % 6), concurrency=3, ordered=bool(x % 2), return_exceptions=True):
            total += each if isinstance(each, int) else 1
        return total

    async def circle(x: int) -> int:
        return 0 if x <= 0 else await made["circle"](x - 1)

    made: dict[str, Service[..., Any]] = {
        **leaves,
        "graph": service(graph, **_options(random), within=random.choice((None, 2.0))),
        "chain": service(chain, **_options(random)),
        "many": service(many, **_options(random)),
        "circle": service(circle, limit=Fixed(1)),
    }
    return made
