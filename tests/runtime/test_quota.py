"""Tokens per minute, and what is told of quotas."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, RateLimited
from penstock.runtime.quota import Allowance, Bucket
from penstock.runtime.tokens import Tenant, Tokens, changed, issue

Calls = list[tuple[float, int, int]]  # seconds since the one before, prompt, answer


@given(
    st.integers(60, 100_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5000), st.integers(0, 5000)), min_size=1, max_size=60),
)
def test_over_any_time_the_rate_is_kept_but_for_a_minute_and_the_last_call(per_minute: int, calls: Calls) -> None:
    bucket, now, used = Bucket(per_minute), 0.0, 0
    for gap, prompt, answer in calls:
        now += gap
        if bucket.wait(prompt, now) == 0:
            before = used - per_minute * (1 + now / 60)
            assert before <= 1e-3, "somebody was let in while tokens were owed"
            bucket.take(prompt, now)
            bucket.take(answer, now)
            used += prompt + answer


@given(st.integers(60, 100_000), st.integers(1, 200_000), st.integers(0, 200_000))
def test_who_comes_when_told_is_let_in(per_minute: int, used: int, prompt: int) -> None:
    bucket = Bucket(per_minute)
    bucket.take(used, 0.0)
    wait = bucket.wait(prompt, 1.0)
    assert wait == 0 or bucket.wait(prompt, 1.0 + 0.9 * wait) > 0
    assert bucket.wait(prompt, 1.0 + wait + 1e-6) == 0.0


def tokens(folder: Path, **quotas: object) -> Tokens:
    with changed(folder / "tokens.json") as book:
        issue(book, "ada", "acme")
        book.tenants["acme"] = Tenant(**quotas)  # type: ignore[arg-type]
    return Tokens(folder / "tokens.json")


def test_prompts_are_taken_first_and_answers_when_they_are_known(tmp_path: Path) -> None:
    quotas = tokens(tmp_path, tokens_per_minute=1000)
    quotas.admit("acme", 600, 0.0)
    quotas.use("acme", 700, 0.0)  # 300 are owed
    with pytest.raises(RateLimited, match="1000 tokens a minute; 0 are left, this prompt has 100") as raised:
        quotas.admit("acme", 100, 0.0)
    assert raised.value.retry_after == pytest.approx(24.0)
    quotas.admit("acme", 100, 24.0)
    quotas.use("acme", -100, 24.0)  # it was refused elsewhere
    assert quotas.allowance("acme", 24.0)[3:] == pytest.approx((1000, 100, 54.0))
    quotas.admit("nobody", 10**9, 0.0)  # has no quota


def test_a_prompt_that_is_larger_than_a_minutes_tokens_comes_when_the_bucket_is_full(tmp_path: Path) -> None:
    quotas = tokens(tmp_path, tokens_per_minute=100)
    quotas.admit("acme", 250, 0.0)
    with pytest.raises(RateLimited) as raised:
        quotas.admit("acme", 1, 0.0)
    assert raised.value.retry_after == pytest.approx(90.6)


def test_what_is_left_of_requests(tmp_path: Path) -> None:
    quotas = tokens(tmp_path, per_second=2.0, burst=10)
    assert quotas.allowance("acme", 5.0) == Allowance(10, 10, 0.0)
    for _ in range(4):
        quotas.charge("acme", 5.0)
    assert quotas.allowance("acme", 5.0) == Allowance(10, 6, 2.0)
    assert quotas.allowance("acme", 6.2)[:3] == pytest.approx((10, 8, 0.8))
    assert quotas.allowance("nobody", 5.0) == Allowance()
    while quotas.allowance("acme", 6.2).remaining_requests:
        quotas.charge("acme", 6.2)
    with pytest.raises(RateLimited):
        quotas.charge("acme", 6.2)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_quota_is_a_number(wrong: float) -> None:
    with pytest.raises(ConfigError):
        Bucket(wrong)
