# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired answers: two sides answer the same items, each right or wrong.

Only the items on which the two disagree say anything of the difference: `lost` are right on the
first side alone, `won` on the second alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from math import comb, inf, sqrt
from statistics import NormalDist

CONFIDENCE = 0.95

_HALVINGS = 50  # of an interval of length 2: far finer than a double's digits near a share
_MOST_PAIRS = 10_000_000


def mcnemar_p_value(lost: int, won: int) -> float:
    """McNemar's exact test, two-sided: how likely so uneven a split is between equal sides.

    Under the hypothesis each disagreement falls to either side with probability one half.
    """
    disagreements = lost + won
    tail = sum(comb(disagreements, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << disagreements))


def difference_interval(
    lost: float, won: float, pairs: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """A confidence interval of the second side's accuracy less the first's.

    The score interval of Tango (Statistics in Medicine 17, 1998): all differences that a test of
    the paired shares does not reject, with the share of disagreements that fits each best. Of few
    disagreements it makes an honest width, also where the sides agree on all items: `z² / (pairs +
    z²)` then. Counts may be fractions, as they are when `pairs_to_decide` thinks ahead.
    """
    reach = NormalDist().inv_cdf((1 + confidence) / 2)
    difference = (won - lost) / pairs if pairs else 0.0
    low = _halve(-1.0, difference, lambda d: _score(lost, won, pairs, d) > reach)
    high = _halve(difference, 1.0, lambda d: _score(lost, won, pairs, d) >= -reach)
    return low, high


def _halve(low: float, high: float, is_below: Callable[[float], bool]) -> float:
    """Where `is_below` turns from true to false."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _score(lost: float, won: float, pairs: float, difference: float) -> float:
    """How many standard deviations the counts are above a true `difference`."""
    a = 2 * pairs
    b = (2 * pairs - won + lost) * difference - won - lost
    c = -lost * difference * (1 - difference)
    share_lost = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a) if a else 0.0
    variance = pairs * (2 * share_lost + difference * (1 - difference))
    excess = won - lost - pairs * difference
    if variance <= 0:
        return 0.0 if excess == 0 else inf if excess > 0 else -inf
    return excess / sqrt(variance)


class Verdict(StrEnum):
    """What an interval of the difference says of a loss of so many points."""

    WORSE = "worse"  # all of it lies beyond: shown to have lost more
    NOT_WORSE = "not worse"  # none of it does: shown not to have lost more
    UNDECIDED = "undecided"  # so few items show neither


def verdict_of(interval: tuple[float, float], most_lost: float) -> Verdict:
    """Whether accuracy fell by more than the share `most_lost`, as far as an interval shows it."""
    low, high = interval
    if high < -most_lost:
        return Verdict.WORSE
    return Verdict.NOT_WORSE if low >= -most_lost else Verdict.UNDECIDED


def pairs_to_decide(lost: int, won: int, pairs: int, most_lost: float) -> int | None:
    """How many pairs would decide it, were the sides to disagree as often as on these.

    None where no number would: the loss is just the one that is allowed, or there are no pairs.
    """

    def decides(count: int) -> bool:
        share = count / pairs
        interval = difference_interval(lost * share, won * share, count)
        return verdict_of(interval, most_lost) is not Verdict.UNDECIDED

    enough = 1
    while pairs and enough <= _MOST_PAIRS and not decides(enough):
        enough *= 2
    if not pairs or enough > _MOST_PAIRS:
        return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decides(middle) else (middle, enough)
    return enough
