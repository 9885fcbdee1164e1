# SPDX-License-Identifier: Apache-2.0
"""Judges an engine by its answers: the same questions about generated clips, beside PyTorch.

Both sides stand behind the engine interface, and one piece of code asks both
(`tc_export.parity.answers.asking`). Kinds that need time are asked again with the frames shuffled,
reversed and frozen: see `tc_export.parity.answers.liveness`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tc_export.parity.answers.asking import Language, Reply, Respondent
from tc_export.parity.answers.liveness import Movement
from tc_export.parity.answers.perturbations import Perturbation, frame_order
from tc_export.parity.answers.statistics import difference_interval, mcnemar_p_value
from tc_export.parity.cost.result import Cost, NotMeasured
from tc_export.tasks import Item, Kind, is_right


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What both sides answered to an item."""

    item: Item
    pytorch: str
    engine: str
    pytorch_margin: float
    engine_margin: float

    @property
    def pytorch_right(self) -> bool:
        """Whether PyTorch's answer is the right one."""
        return is_right(self.item, self.pytorch)

    @property
    def engine_right(self) -> bool:
        """Whether the engine's answer is the right one."""
        return is_right(self.item, self.engine)

    @property
    def flipped(self) -> bool:
        """Whether the two answers differ, right or wrong."""
        return self.pytorch != self.engine


@dataclass(frozen=True)
class Accuracy:
    """How many of the pairs each side answered right."""

    items: int
    pytorch_right: int
    engine_right: int

    @classmethod
    def of(cls, pairs: Collection[Pair]) -> Accuracy:
        """Count."""
        return cls(
            len(pairs),
            sum(pair.pytorch_right for pair in pairs),
            sum(pair.engine_right for pair in pairs),
        )

    @property
    def pytorch(self) -> float:
        """Share that PyTorch answered right."""
        return self.pytorch_right / self.items

    @property
    def engine(self) -> float:
        """Share that the engine answered right."""
        return self.engine_right / self.items

    @property
    def loss(self) -> float:
        """What the engine answers worse than PyTorch; negative where it is better."""
        return (self.pytorch_right - self.engine_right) / self.items


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What an engine may do and still pass.

    `loss` is the accuracy that it may lose, over all items and over those that need time.
    `liveness` is how far its logits may move otherwise than PyTorch's, as a share of that movement.
    On the demonstration model rounding to bfloat16 makes 0.03 of it (float16: 0.004), and losing
    the mask 0.36 or more: the default stands between.
    """

    loss: float = 0.02
    liveness: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The answers of both sides to all items.

    `perturbed` and `movements` hold the kinds that need time, under each perturbation. `pytorch` is
    the model that the engine was built from: where that is quantised, `cost` says what quantising
    it did to the answers, or why that is not known.
    """

    pytorch: str
    engine: str
    thresholds: Thresholds
    pairs: tuple[Pair, ...]
    perturbed: Mapping[Perturbation, Sequence[Pair]]
    movements: Mapping[Perturbation, Movement]
    cost: Cost | NotMeasured | None = None

    @property
    def accuracy(self) -> Accuracy:
        """Over all items."""
        return Accuracy.of(self.pairs)

    @property
    def temporal_accuracy(self) -> Accuracy:
        """Over the items that need time."""
        return Accuracy.of([pair for pair in self.pairs if pair.item.kind.needs_time])

    @property
    def by_kind(self) -> dict[Kind, Accuracy]:
        """Over the items of each kind."""
        groups: defaultdict[Kind, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            groups[pair.item.kind].append(pair)
        return {kind: Accuracy.of(group) for kind, group in groups.items()}

    @property
    def flips(self) -> list[Pair]:
        """The pairs whose answers differ."""
        return [pair for pair in self.pairs if pair.flipped]

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the engine's accuracy less PyTorch's."""
        return difference_interval(*self._disagreements, len(self.pairs))

    @property
    def p_value(self) -> float:
        """McNemar's exact test of the two sides being equally accurate."""
        return mcnemar_p_value(*self._disagreements)

    @property
    def _disagreements(self) -> tuple[int, int]:
        lost = sum(pair.pytorch_right and not pair.engine_right for pair in self.pairs)
        won = sum(pair.engine_right and not pair.pytorch_right for pair in self.pairs)
        return lost, won

    @property
    def passed(self) -> bool:
        """True where the engine answers alike, and quantising cost no more than it may.

        The two are different questions: see `answers_alike` and `cost`. One that was not measured
        does not fail.
        """
        return self.answers_alike and not (isinstance(self.cost, Cost) and not self.cost.passed)

    @property
    def answers_alike(self) -> bool:
        """True where the engine keeps within both thresholds, and its sense of time was judged."""
        return (
            bool(self.movements)
            and self.accuracy.loss <= self.thresholds.loss
            and self.temporal_accuracy.loss <= self.thresholds.loss
            and all(x.passes(self.thresholds.liveness) for x in self.movements.values())
        )


def check_tasks(
    items: Sequence[Item],
    *,
    pytorch: Respondent,
    engine: Respondent,
    language: Language,
    thresholds: Thresholds | None = None,
    heard: Callable[[Item, Reply, Reply], None] | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResult:
    """Ask both sides all items, and those that need time again under every perturbation.

    `heard` gets each item with PyTorch's reply and the engine's; `advance` gets how many items are
    done, and how many there are.
    """
    comparison = _Comparison(pytorch, engine, language, heard)
    for done, item in enumerate(items, start=1):
        comparison.ask(item)
        advance(done, len(items))
    return TaskResult(
        pytorch=pytorch.name,
        engine=engine.name,
        thresholds=thresholds or Thresholds(),
        pairs=tuple(comparison.pairs),
        perturbed=comparison.perturbed,
        movements=comparison.movements,
    )


@dataclass
class _Comparison:
    """Collects what both sides say. Logits are many and long, and are reduced at once."""

    pytorch: Respondent
    engine: Respondent
    language: Language
    heard: Callable[[Item, Reply, Reply], None] | None
    pairs: list[Pair] = field(default_factory=list)
    perturbed: dict[Perturbation, list[Pair]] = field(default_factory=dict)
    movements: dict[Perturbation, Movement] = field(default_factory=dict)

    def ask(self, item: Item) -> None:
        """Ask both sides one item."""
        question = self.language.question(item, self.engine.config.vision.image_size)
        perturbations = list(Perturbation) if item.kind.needs_time else []
        orders = [
            range(len(question.pixel_values)),
            *(frame_order(perturbation, item) for perturbation in perturbations),
        ]
        ours, theirs = (
            side.replies(question, orders, self.language) for side in (self.pytorch, self.engine)
        )
        self.pairs.append(_pair(item, ours[0], theirs[0]))
        if self.heard is not None:
            self.heard(item, ours[0], theirs[0])
        for perturbation, one, other in zip(perturbations, ours[1:], theirs[1:], strict=True):
            self.perturbed.setdefault(perturbation, []).append(_pair(item, one, other))
            movement = Movement.of(
                pytorch=(ours[0].first_logits, one.first_logits),
                engine=(theirs[0].first_logits, other.first_logits),
            )
            before = self.movements.get(perturbation)
            self.movements[perturbation] = before + movement if before else movement


def _pair(item: Item, pytorch: Reply, engine: Reply) -> Pair:
    return Pair(
        item=item,
        pytorch=pytorch.text,
        engine=engine.text,
        pytorch_margin=pytorch.margin,
        engine_margin=engine.margin,
    )
