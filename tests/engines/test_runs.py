"""How a worker cuts a batch."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.runs import plan


@given(
    lengths=st.lists(st.integers(1, 300)),
    most=st.integers(1, 1000),
    waste=st.one_of(st.just(math.inf), st.integers(0, 200)),
)
def test_runs_hold_all_texts_once_by_length_and_keep_to_their_bounds(lengths: list[int], most: int, waste: float) -> None:
    runs = plan(lengths, most, waste)
    order = [n for run in runs for n in run]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[n] for n in order] == sorted(lengths)
    for run in runs:
        total = sum(lengths[n] for n in run)
        assert len(run) == 1 or (total <= most and len(run) * max(lengths[n] for n in run) - total <= waste)
    for run, after in pairwise(runs):  # no run ends early
        total, longest = sum(lengths[n] for n in run) + lengths[after[0]], lengths[after[0]]
        assert total > most or (len(run) + 1) * longest - total > waste


def test_none() -> None:
    assert plan([], 192) == []
