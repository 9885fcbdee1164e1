# SPDX-License-Identifier: Apache-2.0
"""What quantising cost: what became of the unquantised model's answers, counted by kind.

Three sides answer the same items: the unquantised model and the quantised one in PyTorch, and the
engine. The cost is the first against the second. That the engine answers as the second does is
another question: see `tc_export.parity.answers.accuracy`.

A kind is judged by the 95 % interval of its difference (`tc_export.parity.answers.statistics`): it
fails where all of the interval lies beyond what may be lost. Few items show neither that a kind
lost so much nor that it did not: then it is undecided, and how many would decide it is said.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from tc_export.parity.answers.asking import Reply
from tc_export.parity.answers.statistics import (
    Verdict,
    difference_interval,
    mcnemar_p_value,
    pairs_to_decide,
    verdict_of,
)
from tc_export.tasks import Item, Kind, is_right


@dataclass(frozen=True)
class NotMeasured:
    """Why something could not be measured, as a person is told."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class CostLimits:
    """What quantising may cost.

    `most_lost` is the share of right answers that each kind may lose. With `strict` each has to be
    shown not to have lost more; else none may be shown to have.
    """

    most_lost: float = 0.02
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of the unquantised model's answer to an item.

    Margins are of the token that the unquantised model begins its answer with: its logit less that
    of the next best. Below zero the quantised model begins with another. `kl` is the divergence of
    that token's distribution, from the unquantised model's to the quantised one's, in nats.
    """

    item: Item
    unquantised: str
    quantised: str
    engine: str
    unquantised_margin: float
    quantised_margin: float
    kl: float

    @classmethod
    def of(cls, item: Item, unquantised: Reply, quantised: Reply, engine: Reply) -> Self:
        """Compare three replies to one item."""
        first = int(unquantised.first_logits.argmax())
        return cls(
            item=item,
            unquantised=unquantised.text,
            quantised=quantised.text,
            engine=engine.text,
            unquantised_margin=_margin(unquantised.first_logits, first),
            quantised_margin=_margin(quantised.first_logits, first),
            kl=divergence(unquantised.first_logits, quantised.first_logits),
        )

    @property
    def flipped(self) -> bool:
        """Whether the quantised model's answer is another one, right or wrong."""
        return self.unquantised != self.quantised


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Some items counted: how many each side answered right, and how many turned.

    `lost` were right and became wrong, `won` were wrong and became right.
    """

    items: int
    unquantised_right: int
    quantised_right: int
    engine_right: int
    lost: int
    won: int

    @classmethod
    def of(cls, changes: Collection[Change]) -> Self:
        """Count."""
        marks = [
            [is_right(x.item, text) for text in (x.unquantised, x.quantised, x.engine)]
            for x in changes
        ]
        return cls(
            items=len(marks),
            unquantised_right=sum(before for before, _, _ in marks),
            quantised_right=sum(after for _, after, _ in marks),
            engine_right=sum(engine for _, _, engine in marks),
            lost=sum(before and not after for before, after, _ in marks),
            won=sum(after and not before for before, after, _ in marks),
        )

    @property
    def difference(self) -> float:
        """The quantised model's accuracy less the unquantised one's."""
        return (self.won - self.lost) / self.items

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The difference's confidence interval."""
        return difference_interval(self.lost, self.won, self.items)

    @property
    def p_value(self) -> float:
        """McNemar's exact test of the two being equally accurate."""
        return mcnemar_p_value(self.lost, self.won)

    def verdict(self, limits: CostLimits) -> Verdict:
        """Whether more was lost than may be, as far as it is shown."""
        return verdict_of(self.interval, limits.most_lost)

    def items_to_decide(self, limits: CostLimits) -> int | None:
        """How many items would show it, with as many turned answers to a hundred; None: none."""
        return pairs_to_decide(self.lost, self.won, self.items, limits.most_lost)

    def passes(self, limits: CostLimits) -> bool:
        """True where it is not shown to have lost more than it may; with `strict`, shown not to."""
        verdict = self.verdict(limits)
        return verdict is Verdict.NOT_WORSE or (verdict is Verdict.UNDECIDED and not limits.strict)


@dataclass(frozen=True, kw_only=True)
class TextCost:
    """What both models make of passages of ordinary text.

    `kl` is of each token's distribution, from the unquantised model's to the quantised one's, in
    nats, the mean over tokens. `same_token` is the share of tokens after which both think the same
    one likeliest.
    """

    passages: int
    tokens: int
    unquantised_perplexity: float
    quantised_perplexity: float
    kl: float
    same_token: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What quantising cost, by answers and by text.

    Attributes:
        recipe: that the weights were quantised by, as far as it is known.
        unquantised: the folder of the checkpoint before.
        is_checked: whether its digest is the one that the quantised checkpoint states.
        limits: what it may cost.
        changes: one for each item.
        text: None where that was not asked for.
    """

    recipe: str
    unquantised: str
    is_checked: bool
    limits: CostLimits
    changes: tuple[Change, ...]
    text: TextCost | NotMeasured

    @cached_property
    def whole(self) -> Tally:
        """All items."""
        return Tally.of(self.changes)

    @cached_property
    def by_kind(self) -> dict[Kind, Tally]:
        """The items of each kind."""
        groups: defaultdict[Kind, list[Change]] = defaultdict(list)
        for change in self.changes:
            groups[change.item.kind].append(change)
        return {kind: Tally.of(group) for kind, group in groups.items()}

    @property
    def flips(self) -> list[Change]:
        """The items that are answered otherwise now."""
        return [change for change in self.changes if change.flipped]

    @property
    def kl(self) -> float:
        """The mean divergence of the answers' first tokens, in nats."""
        return float(np.mean([change.kl for change in self.changes]))

    @property
    def passed(self) -> bool:
        """True where every kind passes, and all together do."""
        return all(tally.passes(self.limits) for tally in (self.whole, *self.by_kind.values()))


def divergence(before_V: np.ndarray, after_V: np.ndarray) -> float:
    """Of the distribution of logits `before`, to that of `after`, in nats."""
    p, q = (log_probabilities(x) for x in (before_V, after_V))
    return float(np.sum(np.exp(p) * (p - q)))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits [..., V] to the logarithms of probabilities, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def _margin(logits_V: np.ndarray, token: int) -> float:
    others = np.delete(logits_V, token)
    return float(logits_V[token] - others.max())
