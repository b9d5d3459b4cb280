"""What is learned of how long callers wait: right, hard to poison, and unlearned when it has become wrong."""

from __future__ import annotations

import math
from random import Random

import pytest

from penstock.core.patience import Patience, PatienceBook


def nobody() -> list[float]:
    return []


def test_nothing_is_known_at_first() -> None:
    assert Patience().seconds(0.0, nobody) == math.inf


def test_callers_who_all_leave_at_one_second_are_learned() -> None:
    patience = Patience()
    for n in range(200):
        patience.exit(1.0, True, n * 0.1)
    assert patience.seconds(20.0, nobody) == pytest.approx(1.0, rel=0.05)


def test_so_are_they_beside_callers_who_are_answered_sooner() -> None:
    patience = Patience()
    for n in range(400):
        answered = n % 2
        patience.exit(0.3 if answered else 1.0, not answered, n * 0.05)
    assert patience.seconds(20.0, nobody) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_few_early_quitters_do_not_lock_out(share: float) -> None:
    random, patience = Random(1), Patience()
    for n in range(2000):
        early = random.random() < share
        patience.exit(random.uniform(0.001, 0.05) if early else 0.4, early, n * 0.01)
    assert patience.seconds(20.0, nobody) == math.inf


def test_the_first_quitters_of_all_decide_nothing() -> None:
    patience = Patience()
    for _ in range(2):
        patience.exit(0.01, True, 0.0)
    assert patience.seconds(1.0, nobody) == math.inf


def test_those_who_still_wait_count() -> None:
    """Ten left at 0.1 s, but ninety are older than that and still there: nine of ten callers outlive 0.1 s."""
    patience = Patience(prior=0.0)
    for _ in range(10):
        patience.exit(0.1, True, 1.0)
    assert patience.seconds(1.0, lambda: [0.5] * 95) == math.inf
    fresh = Patience(prior=0.0)
    for _ in range(10):
        fresh.exit(0.1, True, 1.0)
    assert fresh.seconds(1.0, lambda: [0.05] * 95) == pytest.approx(0.1, rel=0.05)


def test_an_estimate_that_has_become_wrong_is_unlearned() -> None:
    patience = Patience(half_life=60.0)
    for n in range(100):
        patience.exit(0.05, True, n * 0.1)
    assert patience.seconds(10.0, nobody) < 0.06
    for n in range(2400):  # from now on everybody is answered after 0.2 s
        patience.exit(0.2, False, 10.0 + n * 0.1)
    assert patience.seconds(250.0, nobody) == math.inf


def test_tenants_do_not_teach_each_other_and_the_book_is_bounded() -> None:
    book = PatienceBook()
    for n in range(100):
        book.exit("quitter", 0.01, True, n * 0.1)
    assert book.seconds("quitter", 10.0, nobody) < 0.02
    assert book.seconds("other", 10.0, nobody) == math.inf
    for n in range(5000):
        book.exit(f"tenant {n}", 1.0, True, 10.0)
    assert len(book.tenants) <= 1024
