# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired answers against enumeration of all outcomes, and published values."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.parity.answers.statistics import difference_interval, mcnemar_p_value


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


def coverage(pairs: int, p_lost: float, p_won: float) -> float:
    """The probability, over all outcomes, that the interval holds the true difference."""
    covered = 0.0
    for lost in range(pairs + 1):
        for won in range(pairs - lost + 1):
            low, high = difference_interval(lost, won, pairs)
            if low <= p_won - p_lost <= high:
                same = pairs - lost - won
                ways = comb(pairs, lost) * comb(pairs - lost, won)
                covered += ways * p_lost**lost * p_won**won * (1 - p_lost - p_won) ** same
    return covered


@pytest.mark.parametrize("pairs", [12, 36])
@pytest.mark.parametrize(
    ("p_lost", "p_won"), [(0.01, 0.01), (0.05, 0.02), (0.2, 0.1), (0.3, 0.3), (0.45, 0.05)]
)
def test_interval_keeps_its_level(pairs: int, p_lost: float, p_won: float) -> None:
    assert coverage(pairs, p_lost, p_won) > 0.93


def test_interval_is_not_needlessly_wide() -> None:
    # Between moderate probabilities it is near its level; 0.99 would mean an interval too wide.
    assert coverage(36, 0.3, 0.3) < 0.97
    assert difference_interval(0, 0, 360)[1] < 0.01
