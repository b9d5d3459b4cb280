"""Choosing tokens: the distribution is transformers', draws follow it, and each row is its own."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.generation.logits_process import (  # noqa: E402
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.engines import sampling  # noqa: E402
from penstock.engines.sampling import Choice, choose  # noqa: E402
from penstock.errors import ServiceError  # noqa: E402

CPU = torch.device("cpu")
torch.set_num_threads(1)


def choice(vocabulary: int, prompt: tuple[int, ...] = (0,), **asked: Any) -> Choice:
    return Choice(asked, prompt, vocabulary, CPU)


def by_transformers(logits: Any, prompt: tuple[int, ...], **asked: Any) -> Any:
    """Probabilities [vocabulary], in the order in which `generate` applies its processors."""
    steps = LogitsProcessorList()
    if "repetition_penalty" in asked:
        steps.append(RepetitionPenaltyLogitsProcessor(asked["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(asked.get("temperature", 1.0)))
    if asked.get("top_k"):
        steps.append(TopKLogitsWarper(asked["top_k"]))
    if asked.get("top_p", 1.0) < 1.0:
        steps.append(TopPLogitsWarper(asked["top_p"]))
    if asked.get("min_p"):
        steps.append(MinPLogitsWarper(asked["min_p"]))
    return steps(torch.tensor([prompt]), logits[None].clone())[0].softmax(-1)


ASKED = st.fixed_dictionaries(
    {"temperature": st.floats(0.1, 3.0)},
    optional={
        "top_k": st.integers(1, 60),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.01, 0.9),
        "repetition_penalty": st.floats(0.5, 2.0),
    },
)


@settings(max_examples=60)
@given(asked=ASKED, seed=st.integers(0, 10**6), size=st.sampled_from([2, 40, 3000]), sharp=st.sampled_from([0.3, 3.0, 20.0]))
def test_what_may_be_drawn_is_what_transformers_allows(asked: dict[str, Any], seed: int, size: int, sharp: float) -> None:
    """Of a grid of uniform numbers, each gives the token where transformers' distribution, in some order, has it."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * sharp
    expected = by_transformers(logits, (0, 1), **asked)
    counts: Counter[int] = Counter()
    grid = 400
    for n in range(0, grid, 8):
        rows = [choice(size, (0, 1), **asked) for _ in range(8)]
        for m, row in enumerate(rows):
            row.random = Grid((n + m + 0.5) / grid)
        counts.update(choose(logits.repeat(8, 1), rows))
    for token, count in counts.items():
        assert expected[token] > 0
        assert abs(count / grid - float(expected[token])) <= 1.01 / grid + 1e-4
    missed = 1 - sum(float(expected[token]) for token in counts)
    assert missed <= (len(counts) + 1) / grid + float(expected[expected < 1.01 / grid].sum())


class Grid(random.Random):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def test_rows_do_not_see_each_other() -> None:
    """In any company and order each row draws what it draws alone, also where others make the whole vocabulary be sorted."""
    chance = random.Random(3)
    hows = [
        {"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 5}, {"top_k": 2000}, {"min_p": 0.2}, {"min_p": 1e-9},
        {"top_k": 1500, "top_p": 0.5}, {"frequency_penalty": 1.0}, {"logit_bias": {3: 5.0}}, {"repetition_penalty": 1.3, "top_p": 0.4},
    ]  # fmt: skip
    for _ in range(40):
        logits = torch.randn(len(hows), 4000) * chance.choice([0.01, 1.0, 5.0])
        seeds = [chance.randrange(10**6) for _ in hows]
        alone = [choose(logits[n : n + 1].clone(), [choice(4000, **how, seed=seeds[n])])[0] for n, how in enumerate(hows)]
        order = chance.sample(range(len(hows)), chance.randint(2, len(hows)))
        together = choose(logits[order].clone(), [choice(4000, **hows[n], seed=seeds[n]) for n in order])
        assert together == [alone[n] for n in order]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf])
    drawn: Counter[int] = Counter()
    row = choice(4, seed=7)
    for _ in range(4000):
        drawn.update(choose(logits[None].clone(), [row]))
    for token, probability in enumerate(logits.softmax(-1).tolist()):
        assert abs(drawn[token] / 4000 - probability) < 0.04
    assert drawn[3] == 0


def test_the_ends_of_the_distribution() -> None:
    logits = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf]])
    for value, token in ((0.0, 1), (0.5, 2), (1 - 2**-53, 2)):
        for how in ({}, {"top_p": 0.999999}, {"min_p": 0.5}, {"top_k": 3}):
            row = choice(4, **how)
            row.random = Grid(value)
            assert choose(logits.clone(), [row]) == [token]


def test_a_nucleus_of_nothing_is_the_likeliest() -> None:
    for _ in range(5):
        assert choose(
            torch.tensor([[1.0, 1.1, 1.2, 0.9]]),
            [
                choice(4, top_p=0.0),
            ],
        ) == [2]


def test_penalties_count_what_was_written_and_repetition_also_what_was_read() -> None:
    row = choice(4, (3,), temperature=0, presence_penalty=1.0, frequency_penalty=0.25)
    written = [choose(torch.tensor([[2.0, 1.5, 0.4, 1.4]]), [row])[0] for _ in range(5)]
    # after 0: 0.75, 1.5, 0.4, 1.4; after 1: 0.75, 0.25, 0.4, 1.4; after 3: 0.75 again, then 0.5
    assert written == [0, 1, 3, 0, 0]
    read = choice(4, (3,), temperature=0, repetition_penalty=2.0)
    assert [choose(torch.tensor([[-1.0, 1.2, 0.7, 2.0]]), [read])[0] for _ in range(2)] == [1, 3]


def test_biases() -> None:
    row = choice(4, temperature=0, logit_bias={"2": 100, 0: -100})
    assert choose(torch.zeros(1, 4), [row]) == [2]
    endless = choice(4, temperature=0, logit_bias={1: math.inf})
    assert choose(torch.zeros(1, 4), [endless]) == [1]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    logs = logits.log_softmax(-1)[0].tolist()
    row = choice(4, temperature=0, logit_bias={0: 50}, logprobs=2)
    [token] = choose(logits.clone(), [row])
    assert token.id == 0
    assert token.logprob == pytest.approx(logs[0])
    assert [id_ for id_, _ in token.top] == [1, 2]
    assert [value for _, value in token.top] == pytest.approx([logs[1], logs[2]])
    assert choose(logits.clone(), [choice(4, temperature=0, logprobs=0)])[0].top == ()
    assert len(choose(logits.clone(), [choice(4, temperature=0, logprobs=99)])[0].top) == 4


def test_what_is_no_number_is_told() -> None:
    logits = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.inf, 0.0], [-math.inf, -math.inf]])
    found = choose(logits, [choice(2, temperature=0) for _ in range(4)])
    assert [type(item) for item in found] == [ServiceError, int, ServiceError, ServiceError]
    found = choose(torch.tensor([[math.nan] * 2, [9.0, 0.0]]), [choice(2), choice(2, temperature=0.1)])
    assert isinstance(found[0], ServiceError)
    assert found[1] == 0


def test_the_likeliest_are_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nucleus that lies among the first ones never sorts the vocabulary."""
    monkeypatch.setattr(torch.Tensor, "sort", None)
    assert sampling.HEAD < 4000
    logits = torch.zeros(1, 4000)
    logits[0, :10] = 9.0
    assert choose(logits, [choice(4000, top_p=0.5)])[0] < 10
