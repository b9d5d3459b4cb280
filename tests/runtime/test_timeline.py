"""The timeline of real runs: whole after an orderly end, good after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from served import served

import penstock as ps
from penstock.runtime.timeline import Timeline

APP = """
import penstock as ps

@ps.service(batch=ps.Batch(max_size=4, max_wait=0.005))
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]

app = ps.App(double, log=False)
"""


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.01), on=ps.Thread(2))
def double(xs: list[int]) -> list[int | Exception]:
    return [ValueError(x) if x == 13 else 2 * x for x in xs]


@ps.service
async def outer(x: int) -> int:
    return await double(x)


def slices(events: list[Any]) -> dict[str, list[tuple[str, float, float]]]:
    """By call: the asynchronous slices as (name, begin, end); they must nest."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    stacks: dict[str, list[tuple[str, float]]] = {}
    for event in events:
        stack = stacks.setdefault(event.get("id", ""), [])
        if event["ph"] == "b":
            assert not stack or stack[-1][1] <= event["ts"]
            stack.append((event["name"], event["ts"]))
        elif event["ph"] == "e":
            name, begin = stack.pop()
            assert name == event["name"] and begin <= event["ts"]
            found.setdefault(event["id"], []).append((name, begin, event["ts"]))
    assert not any(stacks.values())
    return found


def test_calls_batches_and_counters(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    async def main() -> list[Any]:
        async with ps.Runtime(double, outer) as runtime:
            with Timeline(runtime, path):
                calls = [outer(x).start() for x in range(1, 10)] + [double(13).start()]
                await asyncio.gather(*calls, return_exceptions=True)
            assert not runtime.log.readers
            return list(runtime.log.recent)

    entries = asyncio.run(main())
    events = json.loads(path.read_text())
    found = slices(events)
    for entry in entries:
        *parts, whole = found[entry.id]
        assert whole[0] == entry.outcome
        assert whole[2] - whole[1] == pytest.approx(1e6 * (entry.queued + entry.batched + entry.ran + entry.streamed), abs=0.01)
        assert sum(end - begin for _, begin, end in parts) == pytest.approx(whole[2] - whole[1], abs=0.01)
    starts = [event for event in events if event["ph"] == "X"]
    assert sum(event["args"]["calls"] for event in starts) == 10  # each batch once, with all its calls
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {names[event["pid"]] for event in starts} == {"double"} and set(names.values()) == {"double", "outer"}
    tracks = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in starts} == tracks
    counters = [event for event in events if event["ph"] == "C"]
    assert counters and all(set(event["args"]) == {"queued", "in flight"} for event in counters)
    assert [event for event in events if event.get("args", {}).get("parent")]


def test_what_it_cannot_keep_up_with_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.aside._MOST", 0)

    async def main() -> None:
        async with ps.Runtime(outer, double) as runtime:
            with Timeline(runtime, tmp_path / "run.json"):
                await outer(1)

    asyncio.run(main())
    events = json.loads((tmp_path / "run.json").read_text())
    assert [event["name"] for event in events] == ["end"] and "calls that are missing here" in events[0]["args"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_file_is_good_after_ctrl_c_and_after_a_kill(tmp_path: Path, end: signal.Signals) -> None:
    from penstock.cli.bench.load import Load, target

    (tmp_path / "doubles.py").write_text(APP)
    path = tmp_path / "run.json"
    with served("doubles:app", "--trace", str(path), cwd=tmp_path) as (child, url):

        async def load() -> None:
            to = target(f"{url}/double", "POST", [b'{"x": 1}'], {"content-type": "application/json"})
            await Load(to, clients=8, count=200).run(60)

        asyncio.run(load())
        while path.read_bytes().count(b'"ph":"X"') < 10:
            os.sched_yield()
        child.process.send_signal(end)
        assert child.end() == (0 if end == signal.SIGINT else -signal.SIGKILL)
    text = path.read_text()
    if end == signal.SIGKILL:
        assert text.endswith(",\n")
        text = text.rstrip(",\n") + "]"
    kinds = Counter(event["ph"] for event in json.loads(text))
    assert kinds["b"] == kinds["e"] >= 10 and kinds["X"] >= 10 and kinds["C"] and kinds["M"]
    if end == signal.SIGINT:
        assert len(slices(json.loads(text))) == 200
