# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired answers: two sides answer the same items, each right or wrong.

Only the items on which the two disagree say anything of the difference: `lost` are right on the
first side alone, `won` on the second alone.
"""

from __future__ import annotations

from math import comb, sqrt
from statistics import NormalDist

CONFIDENCE = 0.95


def mcnemar_p_value(lost: int, won: int) -> float:
    """McNemar's exact test, two-sided: how likely so uneven a split is between equal sides.

    Under the hypothesis each disagreement falls to either side with probability one half.
    """
    disagreements = lost + won
    tail = sum(comb(disagreements, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << disagreements))


def difference_interval(
    lost: int, won: int, pairs: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """A confidence interval of the second side's accuracy less the first's.

    Wald's interval for paired proportions with the adjustment of Bonett and Price (2012), which
    adds one disagreement of each sort. It keeps its level for few items, and has a width also
    where the sides agree on all of them, as Wald's own does not.
    """
    total = pairs + 2
    share_lost, share_won = (lost + 1) / total, (won + 1) / total
    difference = share_won - share_lost
    deviation = sqrt((share_lost + share_won - difference**2) / total)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    return max(-1.0, difference - reach), min(1.0, difference + reach)
