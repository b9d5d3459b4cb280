"""Continuous batching of a causal LM: what a request is answered depends on nothing that runs beside it."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from penstock import END
from penstock.errors import ConfigError, InvalidRequest, Overloaded, ServiceError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from penstock.engines.writing import Writing  # noqa: E402

GREEDY = {"temperature": 0}
LONGEST = 24  # tokens of an answer
PLAIN = {
    "qwen3": tiny_models.qwen3,
    "llama": lambda: tiny_models.other("llama", num_key_value_heads=2),
    "gpt2": lambda: tiny_models.other("gpt2"),
    "gpt_neox": lambda: tiny_models.other("gpt_neox"),
    "sliding windows": lambda: tiny_models.other("mistral", sliding_window=6, num_key_value_heads=1),
    "windows in some layers": lambda: tiny_models.other(
        "gemma3_text", sliding_window=5, layer_types=("sliding_attention", "full_attention"), head_dim=8, num_key_value_heads=2
    ),
}


def writing(folder: Path, **options: Any) -> Writing:
    """In float64, where no two logits are so close that the size of a batch could decide between them."""
    given = {"context": 512, "stops": frozenset({2}), "dtype": "float64", "replicas": 1, "pickles": False}
    return Writing(folder, **given | options)


@functools.cache
def plain(kind: str) -> Writing:
    return writing(PLAIN[kind]())


@functools.cache
def reference(kind: str) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(PLAIN[kind](), dtype="float64")
    return model.eval()


@functools.cache
def expected(kind: str, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """What transformers' own `generate` writes, alone."""
    ids = torch.tensor([prompt])
    out = reference(kind).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=2
    )
    return out[0, len(prompt) :].tolist()


def run(model: Writing, requests: dict[int, tuple[Any, ...]], units: int = 1000) -> dict[int, list[Any]]:
    """All of them together, each in the slot of its number, until all have ended; prompts in pieces of `units`."""
    left = {slot: model.add(slot, *request) for slot, request in requests.items()}
    out: dict[int, list[Any]] = {slot: [] for slot in requests}
    live = set(requests)
    while live:
        plan = {slot: min(left[slot], units) or 1 for slot in sorted(live)}
        left = {slot: max(0, count - units) for slot, count in left.items()}
        for slot, item in model.step(plan):
            assert slot in live
            if item is END or isinstance(item, Exception):
                live.discard(slot)
                model.drop(slot)
            if item is not END:
                out[slot].append(item)
    return out


def one(model: Writing, prompt: list[int], **sampling: Any) -> list[Any]:
    return run(model, {0: (prompt, {"max_tokens": 8, **sampling})})[0]


# Laws


@pytest.mark.parametrize("kind", PLAIN)
def test_greedy_answers_are_those_of_generate_whatever_runs_beside(kind: str) -> None:
    """Storms of arrivals, prompts in pieces, paused readers, cancels: every token that was written is the right one."""
    for seed in range(6):
        _storm(plain(kind), kind, seed)


def _storm(model: Writing, kind: str, seed: int) -> None:
    chance = random.Random(seed)
    prompts = [tuple(chance.randrange(3, 300) for _ in range(chance.choice([1, 2, 5, 20, 60]))) for _ in range(6)]
    waiting = [(chance.choice(prompts), chance.choice([1, 3, 12, LONGEST])) for _ in range(14)]
    live: dict[int, tuple[tuple[int, ...], int]] = {}
    left: dict[int, int] = {}
    out: dict[int, list[int]] = {}
    while waiting or live:
        free = [slot for slot in range(5) if slot not in live]
        while waiting and free and chance.random() < 0.5:
            slot = free.pop(chance.randrange(len(free)))
            live[slot], out[slot] = waiting.pop(), []
            left[slot] = model.add(slot, list(live[slot][0]), {"max_tokens": live[slot][1], **GREEDY})
        taking_part = [slot for slot in live if chance.random() < 0.8]
        plan = {slot: chance.randint(1, left[slot]) if left[slot] else 1 for slot in taking_part}
        for slot, units in plan.items():
            left[slot] -= min(left[slot], units)
        ended = []
        for slot, item in model.step(plan) if plan else []:
            if item is END:
                assert out[slot] == expected(kind, *live[slot]), f"seed {seed}"
                ended.append(slot)
            else:
                out[slot].append(item)
        for slot in [*ended, *(slot for slot in live if slot not in ended and chance.random() < 0.03)]:
            prompt, tokens = live.pop(slot)
            assert out[slot] == expected(kind, prompt, tokens)[: len(out[slot])], f"seed {seed}"
            model.drop(slot)
    assert not model.seats
    assert not any(model.rows)


SAMPLED = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 2.0, "min_p": 0.3},
    {"temperature": 0.9, "top_p": 0.5, "top_k": 40, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 1.0, "repetition_penalty": 1.5, "logit_bias": {5: 4.0, 6: -100}, "logprobs": 3},
    GREEDY,
]


def test_a_seed_gives_the_same_tokens_whatever_runs_beside() -> None:
    model, chance = plain("qwen3"), random.Random(1)
    for seed in range(12):
        requests = {
            slot: (
                [chance.randrange(300) for _ in range(chance.randint(1, 30))],
                {"seed": seed + slot, "max_tokens": 12, **how},
            )
            for slot, how in enumerate(chance.sample(SAMPLED, 5))
        }
        together = run(model, requests, units=chance.choice([1, 7, 100]))
        for slot, request in requests.items():
            alone = run(model, {slot: request})[slot]
            assert [_id(item) for item in together[slot]] == [_id(item) for item in alone]


def _id(item: Any) -> int:
    return item if isinstance(item, int) else item.id


def test_without_a_seed_answers_differ() -> None:
    model = plain("qwen3")
    assert len({tuple(one(model, [5, 6, 7], temperature=1.0)) for _ in range(8)}) > 1


# Ends


def test_ends_after_a_stop_token_which_it_gives_or_after_max_tokens() -> None:
    model = plain("qwen3")
    whole = one(model, [9, 8, 7], max_tokens=20, ignore_eos=True, **GREEDY)
    assert len(whole) == 20
    stop = whole[5]
    assert one(model, [9, 8, 7], max_tokens=20, stop_ids=[stop], **GREEDY) == whole[: whole.index(stop) + 1]
    biased = {"logit_bias": {"2": 100.0}, **GREEDY}
    assert one(model, [9, 8, 7], **biased) == [2]
    assert one(model, [9, 8, 7], ignore_eos=True, **biased) == [2] * 8


# Only the one fails


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([], {}), ([-1], {}), ([10**6], {}), ([1.5], {}), ([True], {}), (["a"], {}), ([1] * 600, {}), ([1], {"max_tokens": 512}),
        ([1], {"max_tokens": 0}), ([1], {"max_tokens": None}), ([1], {"max_tokens": 2.5}), ([1], {"temperature": -1}),
        ([1], {"temperature": math.nan}), ([1], {"temperature": "hot"}), ([1], {"top_p": 1.5}), ([1], {"top_k": True}),
        ([1], {"logit_bias": {10**6: 1}}), ([1], {"logit_bias": {"x": 1}}), ([1], {"logit_bias": [1]}),
        ([1], {"repetition_penalty": 0}), ([1], {"min_p": 2}), ([1], {"logprobs": -1}), ([1], {"presence_penalty": math.inf}),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_leaves_nothing(prompt: Any, sampling: dict[str, Any]) -> None:
    model = plain("qwen3")
    with pytest.raises(InvalidRequest):
        model.add(0, prompt, {"max_tokens": 4, **sampling})
    assert not model.seats
    assert one(model, [1, 2], **GREEDY)


def test_where_memory_is_short_only_who_needs_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writing(tiny_models.qwen3())
    larger = type(model.lm.cache)._larger
    calls = []

    def short(cache: Any, kept: Any) -> Any:
        if cache.tokens > 128:
            calls.append(1)
            if len(calls) > 1:  # the second layer's, so that the layers differ
                raise torch.OutOfMemoryError("no")
        return larger(cache, kept)

    monkeypatch.setattr(type(model.lm.cache), "_larger", short)
    requests = {
        0: ([5] * 20, {"max_tokens": 20, **GREEDY}),
        1: ([6] * 120, {"max_tokens": 20, **GREEDY}),
        2: ([7] * 200, {"max_tokens": 5}),
    }
    out = run(model, requests)
    assert out[0] == expected("qwen3", (5,) * 20, 20)
    assert [type(item) for item in out[1][-1:] + out[2]] == [Overloaded, Overloaded]
    assert out[1][:-1] == expected("qwen3", (6,) * 120, 20)[: len(out[1]) - 1]
    monkeypatch.undo()
    assert run(model, requests)[1] == expected("qwen3", (6,) * 120, 20)


def test_a_prompt_for_which_there_is_no_memory_does_not_end_those_who_write(monkeypatch: pytest.MonkeyPatch) -> None:
    model = writing(tiny_models.qwen3())
    forward = model.lm.forward

    def short(ids: list[int], *given: Any) -> Any:
        if len(ids) > 50:
            raise torch.OutOfMemoryError("no")
        return forward(ids, *given)

    monkeypatch.setattr(model.lm, "forward", short)
    left = {slot: model.add(slot, [5 + slot] * 9, {"max_tokens": 12, **GREEDY}) for slot in range(2)}
    out: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for slot, item in model.step(left) + model.step({0: 1, 1: 1}):
        out[slot].append(item)
    model.add(2, [8] * 60, {"max_tokens": 5})
    plan = {0: 1, 1: 1, 2: 60}
    while plan:
        for slot, item in model.step(plan):
            out[slot].append(item)
            if item is END or isinstance(item, Exception):
                del plan[slot]
                model.drop(slot)
    assert [type(item) for item in out[2]] == [Overloaded]
    for slot in range(2):
        assert out[slot][:-1] == expected("qwen3", (5 + slot,) * 9, 12)


def test_what_is_no_number_fails_its_request_and_poisons_nobody() -> None:
    model = writing(tiny_models.qwen3())
    with torch.no_grad():
        model.lm.model.get_input_embeddings().weight[11] = math.nan
    torch.manual_seed(0)
    model.lm.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm.model.lm_head.weight))  # no longer tied
    for _ in range(3):
        out = run(
            model,
            {0: ([5] * 9, {"max_tokens": 6, **GREEDY}), 1: ([11] * 30, {"max_tokens": 6}), 2: ([6, 7], {"max_tokens": 6})},
        )
        assert [type(item) for item in out[1]] == [ServiceError]
        assert all(isinstance(item, int) for item in out[0] + out[2])


# What it holds


def test_memory_follows_what_is_in_use() -> None:
    model = writing(tiny_models.qwen3())
    assert model.lm.cache.room() == (1, 128)
    for slot in range(5):
        model.add(slot, [5] * 150, {"max_tokens": 300, **GREEDY})
    model.step(dict.fromkeys(range(5), 150))
    assert model.lm.cache.room() == (8, 256)
    for slot in range(5):
        model.drop(slot)
    assert model.lm.cache.room() == (8, 256)  # the next crowd need not make room again
    one(model, [5] * 140, **GREEDY)
    assert model.lm.cache.room() == (1, 256)
    one(model, [5] * 9, **GREEDY)
    assert model.lm.cache.room() == (1, 128)
    for kept in model.lm.cache.kept.values():
        assert not any(values.any() for values in kept)


# Models that are not plain


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"head_dim": 8, "num_key_value_heads": 2}),  # caps its scores
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),  # biases them
        ("mamba", {"state_size": 4}),  # keeps a state
    ],
)
def test_what_is_not_plain_attention_is_refused(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="slots"):
        writing(tiny_models.other(kind, **settings))


def test_experts_are_plain() -> None:
    """Their grouped products know no float64, so this one is compared as it is served."""
    settings = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    folder = tiny_models.other("qwen3_moe", **settings)
    ids = torch.tensor([[5, 6, 7, 8]])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=2)
    assert one(writing(folder, dtype=None), [5, 6, 7, 8], **GREEDY) == out[0, 4:].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_numbers(dtype: str) -> None:
    assert len(one(writing(tiny_models.qwen3(), dtype=dtype), [5, 6, 7], ignore_eos=True)) == 8
