"""What is learned of how long callers wait: right, hard to poison, and unlearned when it has become wrong."""

from __future__ import annotations

import math
from random import Random

import pytest
from stand import Stand

from penstock.core.hangups import HangUps
from penstock.core.patience import Patience, PatienceBook, Sample
from penstock.errors import Overloaded


def nobody() -> Sample:
    return [], 1


def test_nothing_is_known_at_first() -> None:
    assert Patience().seconds(0.0, nobody) == math.inf


def test_callers_who_all_leave_at_one_second_are_learned() -> None:
    patience = Patience()
    for _ in range(200):
        patience.exit(1.0, True, -1.0)
    assert patience.seconds(20.0, nobody) == pytest.approx(1.0, rel=0.05)


def test_so_are_they_beside_callers_who_are_answered_sooner() -> None:
    patience = Patience()
    for n in range(400):
        answered = n % 2
        patience.exit(0.3 if answered else 1.0, not answered, -1.0)
    assert patience.seconds(20.0, nobody) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_few_early_quitters_do_not_lock_out(share: float) -> None:
    random, patience = Random(1), Patience()
    for n in range(2000):
        early = random.random() < share
        patience.exit(random.uniform(0.001, 0.05) if early else 0.4, early, n / 100)
    assert patience.seconds(20.0, nobody) == math.inf


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_those_in_a_hurry_do_not_decide_how_long_the_others_stay(share: float) -> None:
    random, patience = Random(1), Patience()
    for n in range(4000):
        hurried = random.random() < share
        patience.exit(random.uniform(0.02, 0.045) if hurried else 0.3, hurried, n / 100)
    assert patience.seconds(40.0, nobody, 0.05) == math.inf
    for n in range(4000):
        patience.exit(random.uniform(0.02, 0.045) if random.random() < share else 1.0, True, 50.0 + n / 100)
    assert patience.seconds(100.0, nobody, 0.05) == pytest.approx(1.0, rel=0.05)


def test_where_most_are_in_a_hurry_that_is_what_is_learned() -> None:
    random, patience = Random(1), Patience()
    for n in range(1000):
        hurried = random.random() < 0.7
        patience.exit(random.uniform(0.03, 0.032) if hurried else 1.0, hurried, n / 100)
    assert patience.seconds(10.0, nobody, 0.05) == pytest.approx(0.03, rel=0.1)


def test_who_leaves_before_an_answer_could_be_ready_teaches_no_patience() -> None:
    book = PatienceBook(HangUps(lambda: 0.2))
    for n in range(1000):
        book.exit("all too hasty", 0.19, True, n / 100)
    assert book.seconds("all too hasty", 10.0, nobody) == math.inf
    assert "all too hasty" in book.hangups.tenants
    for n in range(1000):
        book.exit("hasty", 0.25, True, n / 100)
    assert book.seconds("hasty", 10.0, nobody) == pytest.approx(0.25, rel=0.05)


def test_the_first_quitters_of_all_decide_nothing() -> None:
    patience = Patience()
    for _ in range(2):
        patience.exit(0.01, True, -1.0)
    assert patience.seconds(1.0, nobody) == math.inf


def test_clients_that_end_together_have_not_run_out_of_patience() -> None:
    """A load generator closes its connections: many leave at once, at all the ages that were under way."""
    random, patience = Random(1), Patience()
    for run in range(5):
        for n in range(400):
            patience.exit(0.04, False, run + n / 1000)
            patience.seconds(run + n / 1000, nobody)
        for n in range(128):
            patience.exit(random.uniform(0.002, 0.045), True, run + 0.5 + n * 1e-5)
        assert patience.seconds(run + 0.6, nobody) == math.inf
    for _ in range(60):  # a crowd that came together and leaves together has one age, and has run out of patience
        patience.exit(random.uniform(0.98, 1.02), True, 10.0)
    assert patience.seconds(10.1, nobody) == pytest.approx(1.0, rel=0.06)


def test_those_who_still_wait_count() -> None:
    """Ten left at 0.1 s, but ninety are older than that and still there: nine of ten callers outlive 0.1 s."""
    patience = Patience(prior=0.0)
    for _ in range(10):
        patience.exit(0.1, True, -1.0)
    assert patience.seconds(1.0, lambda: ([0.5] * 19, 5)) == math.inf
    fresh = Patience(prior=0.0)
    for _ in range(10):
        fresh.exit(0.1, True, -1.0)
    assert fresh.seconds(1.0, lambda: ([0.05] * 19, 5)) == pytest.approx(0.1, rel=0.05)


def test_an_estimate_that_has_become_wrong_is_unlearned() -> None:
    patience = Patience()
    for _ in range(1000):
        patience.exit(0.05, True, -1.0)
    assert patience.seconds(10.0, nobody) < 0.06
    for _ in range(600):  # from now on everybody is answered after 0.2 s
        patience.exit(0.2, False, -1.0)
    assert patience.seconds(20.0, nobody) == math.inf


@pytest.mark.parametrize("history", [200, 100_000])
def test_callers_who_have_become_impatient_are_noticed_however_long_the_history(history: int) -> None:
    patience = Patience()
    for n in range(history):
        patience.exit(0.9 if n % 3 else 1.0, not n % 3, -1.0)
        if n % 1000 == 999:
            patience.seconds(n / 100, nobody)
    assert patience.seconds(1000.0, nobody) == pytest.approx(1.0, rel=0.05)
    for _ in range(30):
        patience.exit(0.3, True, 1000.05)
    assert patience.seconds(1000.1, nobody) == pytest.approx(0.3, rel=0.05)


def test_what_nobody_reaches_any_more_is_remembered() -> None:
    """Everybody is answered sooner because later calls are refused: no reason to believe that callers wait longer now."""
    patience = Patience()
    for _ in range(200):
        patience.exit(1.0, True, -1.0)
    for n in range(6000):
        patience.exit(0.8, False, -1.0)
        patience.seconds(n / 100, nobody)
    assert patience.seconds(60.0, nobody) == pytest.approx(1.0, rel=0.05)


def test_time_alone_unlearns() -> None:
    patience = Patience(half_life=60.0)
    for _ in range(200):
        patience.exit(0.3, True, -1.0)
    assert patience.seconds(0.0, nobody) == pytest.approx(0.3, rel=0.05)
    for n in range(600):
        patience.exit(0.2, False, -1.0)
        patience.seconds(float(n), nobody)
    assert patience.seconds(600.0, nobody) == math.inf


def test_tenants_do_not_teach_each_other_and_the_book_is_bounded() -> None:
    book = PatienceBook(HangUps(lambda: 0.0))
    for _ in range(100):
        book.exit("quitter", 0.01, True, -1.0)
    assert book.seconds("quitter", 10.0, nobody) < 0.02
    assert book.seconds("other", 10.0, nobody) == math.inf
    for n in range(5000):
        book.exit(f"tenant {n}", 1.0, True, -1.0)
    assert len(book.tenants) <= 1024


def test_a_refusal_that_leaves_the_station_idle_is_regretted() -> None:
    """Whoever was refused would still have waited when nothing was left to do: their patience is learned anew."""
    stand = Stand(1)
    stand.know(0.1)
    for _ in range(40):  # all leave at 0.35 s, while a first call runs
        stand.submit()
        leaver = stand.submit(tenant="hasty")
        stand.to(stand.now + 0.35)
        stand.do(stand.scheduler.cancel(leaver, stand.now))
        stand.finish()
    waiting = [stand.submit() for _ in range(3)]
    refused = stand.submit(tenant="hasty")
    assert isinstance(stand.errors[refused], Overloaded)
    for _ in waiting:
        stand.finish(0.01)
    assert not stand.station.running
    for _ in range(3):
        stand.submit()
    assert stand.submit(tenant="hasty") not in stand.errors


def test_dropping_the_old_does_not_prove_that_they_would_have_waited() -> None:
    patience = Patience()
    for _ in range(200):
        patience.exit(1.0, True, -1.0)
    assert patience.seconds(0.0, nobody) < 1.0
    for _ in range(5000):
        patience.exit(0.99, False, -1.0, dropped=True)
    assert patience.seconds(0.1, nobody) < 1.0
