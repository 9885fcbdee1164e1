# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired answers against enumeration of all outcomes, and published values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.parity.answers.statistics import (
    Verdict,
    difference_interval,
    mcnemar_p_value,
    pairs_to_decide,
    verdict_of,
)

MOST_LOST = 0.02


def share_at_least_as_uneven(lost: int, won: int) -> float:
    """Toss a fair coin for each disagreement, in every possible way."""
    tosses = [sum(way) for way in product((-1, 1), repeat=lost + won)]
    return sum(abs(toss) >= abs(lost - won) for toss in tosses) / len(tosses)


@pytest.mark.parametrize("disagreements", range(11))
def test_mcnemar_equals_enumeration(disagreements: int) -> None:
    for lost in range(disagreements + 1):
        won = disagreements - lost
        expected = share_at_least_as_uneven(lost, won)
        assert mcnemar_p_value(lost, won) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [
        (0, 0, 1.0),
        (0, 5, 0.0625),
        # Airway responsiveness before and after transplantation, in Fagerland, Lydersen and
        # Laake (2014): 1 against 7.
        (1, 7, 0.0703125),
    ],
)
def test_mcnemar_known_values(lost: int, won: int, expected: float) -> None:
    assert mcnemar_p_value(lost, won) == expected


def test_mcnemar_of_many_disagreements_does_not_overflow() -> None:
    assert 0 < mcnemar_p_value(1800, 2200) < 1e-9
    assert mcnemar_p_value(0, 2000) == 0.0


def score(lost: int, won: int, pairs: int, difference: float) -> float:
    """By Tango's definition: the observed difference against a true one, over the deviation that
    the likeliest shares have under it. These are found by trying them."""
    same = pairs - lost - won
    least = max(0.0, -difference)
    tried = np.linspace(least, (1 - difference) / 2, 200_001)[1:-1]  # shares of `lost`
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihoods = sum(
            count * np.log(share)
            for count, share in ((lost, tried), (won, tried + difference))
            if count
        ) + same * np.log1p(-2 * tried - difference)
    share_lost = float(tried[np.argmax(likelihoods)])
    variance = (2 * share_lost + difference - difference**2) / pairs
    return ((won - lost) / pairs - difference) / sqrt(variance)


@pytest.mark.parametrize(
    ("lost", "won", "pairs"), [(7, 1, 21), (1, 7, 21), (0, 1, 44), (12, 2, 50), (3, 0, 30)]
)
def test_the_interval_is_what_the_score_test_does_not_reject(
    lost: int, won: int, pairs: int
) -> None:
    low, high = difference_interval(lost, won, pairs)
    assert score(lost, won, pairs, low) == pytest.approx(1.95996, abs=2e-3)
    assert score(lost, won, pairs, high) == pytest.approx(-1.95996, abs=2e-3)


def test_interval_known_values() -> None:
    # Airway responsiveness again: Tango's interval in Fagerland, Lydersen and Laake (2014).
    assert difference_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_interval_holds_the_difference_and_is_symmetric(lost: int, won: int, same: int) -> None:
    pairs = lost + won + same
    low, high = difference_interval(lost, won, pairs)
    assert -1 <= low < high <= 1
    assert difference_interval(won, lost, pairs) == pytest.approx((-high, -low), abs=1e-12)
    if pairs:
        assert low <= (won - lost) / pairs <= high
    wide_low, wide_high = difference_interval(lost, won, pairs, confidence=0.99)
    assert wide_low <= low
    assert high <= wide_high


def outcomes(pairs: int, p_lost: float, p_won: float) -> Iterator[tuple[int, int, float]]:
    """What may come out, with its probability; what is next to impossible is left out."""
    for lost in range(pairs + 1):
        for won in range(pairs - lost + 1):
            same = pairs - lost - won
            ways = comb(pairs, lost) * comb(pairs - lost, won)
            share = ways * p_lost**lost * p_won**won * (1 - p_lost - p_won) ** same
            if share > 1e-9:
                yield lost, won, share


@pytest.mark.parametrize("pairs", [12, 36])
@pytest.mark.parametrize(
    ("p_lost", "p_won"), [(0.01, 0.01), (0.05, 0.02), (0.2, 0.1), (0.3, 0.3), (0.45, 0.05)]
)
def test_interval_keeps_its_level(pairs: int, p_lost: float, p_won: float) -> None:
    covered = 0.0
    for lost, won, share in outcomes(pairs, p_lost, p_won):
        low, high = difference_interval(lost, won, pairs)
        covered += share * (low <= p_won - p_lost <= high)
    assert covered > 0.93


@pytest.mark.parametrize("pairs", [30, 190, 360])
@pytest.mark.parametrize("p_won", [0.0, 0.005, 0.02, 0.05])
def test_a_verdict_is_wrong_once_in_twenty_at_most(pairs: int, p_won: float) -> None:
    """Where just as much was lost as may be, either verdict is wrong."""
    said: Counter[Verdict] = Counter()
    for lost, won, share in outcomes(pairs, p_won + MOST_LOST, p_won):
        said[verdict_of(difference_interval(lost, won, pairs), MOST_LOST)] += share
    assert said[Verdict.NOT_WORSE] < 0.026
    assert said[Verdict.WORSE] < 0.05


def test_verdicts() -> None:
    assert verdict_of((-0.05, -0.021), MOST_LOST) is Verdict.WORSE
    assert verdict_of((-0.05, -0.019), MOST_LOST) is Verdict.UNDECIDED
    assert verdict_of((-0.019, 0.05), MOST_LOST) is Verdict.NOT_WORSE
    # At 30 items of a kind nothing is shown of a side that never turns, nor of one that loses four.
    assert verdict_of(difference_interval(0, 0, 30), MOST_LOST) is Verdict.UNDECIDED
    assert verdict_of(difference_interval(4, 0, 30), MOST_LOST) is Verdict.UNDECIDED
    assert verdict_of(difference_interval(5, 0, 30), MOST_LOST) is Verdict.WORSE


@given(st.integers(0, 8), st.integers(0, 8), st.integers(20, 200), st.sampled_from([0.01, 0.02]))
def test_pairs_to_decide_do_decide(lost: int, won: int, same: int, most_lost: float) -> None:
    pairs = lost + won + same
    needed = pairs_to_decide(lost, won, pairs, most_lost)
    if needed is None:
        assert (lost - won) / pairs == pytest.approx(most_lost, abs=1e-3)
        return

    def decides(count: int) -> bool:
        share = count / pairs
        interval = difference_interval(share * lost, share * won, count)
        return verdict_of(interval, most_lost) is not Verdict.UNDECIDED

    assert decides(needed)
    assert not decides(needed - 1)


def test_pairs_to_decide_known_values() -> None:
    # Without a single disagreement: z² (1 - 0.02) / 0.02, since the bound is z² / (n + z²).
    assert pairs_to_decide(0, 0, 30, MOST_LOST) == 189
    assert pairs_to_decide(1, 0, 50, MOST_LOST) is None
    assert pairs_to_decide(0, 0, 0, MOST_LOST) is None


def test_interval_is_not_needlessly_wide() -> None:
    assert difference_interval(0, 0, 360)[1] < 0.011
