"""What inputs weigh, and that queues bounded in bytes refuse by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import penstock as ps
from penstock.errors import QueueFull, TooLarge
from penstock.runtime.weigh import weigh


class Array:
    nbytes = 800


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ((), 0),
        ((1, 2.5, True, None, object()), 0),
        (("text", b"bytes", bytearray(7), memoryview(bytes(8)), Array()), 4 + 5 + 7 + 8 + 800),
        ((memoryview(bytes(80)).cast("d"),), 80),
        ((["one", "three"],), 8),
        (([b"one", bytearray(5)], (b"x" * 100,)), 108),
        (([], {}, ()), 0),
        (({"role": "user", "content": "hello"},), 9),  # keys are names, values are data
        (([{"role": "user", "content": "hello"}] * 3,), 27),
        (([1, "two", None, [b"four"]],), 7),
        (({"a", "bc"}, frozenset((b"def",))), 6),
        (([Array(), Array()],), 1600),
    ],
)
def test_data_counts_also_within_containers(values: tuple[Any, ...], size: int) -> None:
    assert weigh(values) == size


def test_text_counts_what_it_takes_in_memory() -> None:
    assert weigh(["a" * 1000]) == 1000
    assert 2000 <= weigh(["\u4f60" * 1000]) <= 2100
    assert weigh([["\u4f60" * 1000] * 4]) == 4 * weigh(["\u4f60" * 1000])


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (["ab"] * 100_000, 200_000),
        ([b"ab"] * 100_001, 200_002),
        (dict.fromkeys(range(100_000), "ab"), 200_000),
        (["ab", "abcd"] * 50_000, 300_000),
        ([[["ab"] * 50] * 50] * 50, 250_000),
        ([{"text": "abcd"}] * 10_000, 40_000),
        (list(range(100_000)), 0),
    ],
)
def test_of_much_a_part_stands_for_the_whole(value: Any, size: int) -> None:
    assert weigh((value,)) == pytest.approx(size, rel=0.5)


class Looked(list[Any]):
    """Counts how often it is looked into."""

    looks = 0

    def __len__(self) -> int:
        Looked.looks += 1
        return super().__len__()


def test_the_looks_are_bounded_however_deep_and_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.runtime import weigh as module

    monkeypatch.setattr(module, "_CONTAINERS", frozenset((list, Looked)))
    value: Any = "ab"
    for _ in range(6):
        value = Looked([value] * 100)
    assert weigh((value,)) >= 0
    assert 0 < Looked.looks < 1000


def test_what_refers_to_itself_ends() -> None:
    loop: list[Any] = ["ab"]
    loop.append(loop)
    assert weigh((loop,)) >= 2


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("value", [["x" * 40], (b"x" * 40,), {"text": "x" * 40}, [["x" * 40]]])
def test_a_queue_of_bytes_is_full_of_lists_too(value: Any, gate: threading.Event) -> None:
    @ps.service(on=ps.Thread(1), admit=ps.Queue(size_bytes=100))
    def held(value: Any) -> int:
        gate.wait(30)
        return 1

    async def main() -> None:
        async with ps.Runtime(held):
            calls = [held(value).start() for _ in range(3)]  # one runs, two of 40 bytes wait
            with pytest.raises(QueueFull, match="80 bytes wait already and this call has 40"):
                await held(value=value)
            with pytest.raises(TooLarge, match="has 120 bytes"):
                await held([value] * 3)
            gate.set()
            assert await ps.join(*calls) == (1, 1, 1)

    asyncio.run(main())
