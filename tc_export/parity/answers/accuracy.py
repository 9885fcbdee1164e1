# SPDX-License-Identifier: Apache-2.0
"""Judges an engine by its answers: the same questions about generated clips, beside PyTorch.

Both sides stand behind the engine interface, and one piece of code asks both. They see the same
pixels and the same prompt, by the bundle's own preprocessing and template, and answer greedily.
Kinds that need time are asked again with the frames shuffled, reversed and frozen: see
`tc_export.parity.answers.liveness`.

Axes: F frames of a clip, S tokens, E channels, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import PIXEL_VALUES, VISUAL_FEATURES
from tc_export.engine.interface import Engine
from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Segment
from tc_export.parity.answers.liveness import Movement
from tc_export.parity.answers.perturbations import Perturbation, frame_order
from tc_export.parity.answers.statistics import difference_interval, mcnemar_p_value
from tc_export.tasks import Item, Kind, is_right, render

VISUAL_PLACE = -1
LONGEST_ANSWER = 6
"""Tokens of an answer at most: each is one short word, however finely a tokenizer cuts it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a clip as engines read it.

    `pixel_values` [F, 3, H, W]; `token_ids` [S] have `VISUAL_PLACE` at visual tokens.
    """

    pixel_values: NDArray[np.float32]
    segments: tuple[Segment, ...]
    token_ids: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Language:
    """What stands around the engines, the same for every side.

    `prepare` takes frames [F, H, W, 3] and the question's text; `decode` takes token ids.
    """

    prepare: Callable[[NDArray[np.uint8], str], Question]
    decode: Callable[[Sequence[int]], str]
    end_tokens: Collection[int]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A greedy answer.

    `margin` is the smallest gap between the first and the second choice on the way: what it takes
    to turn the answer. `first_logits` [V] are those of its first token.
    """

    text: str
    margin: float
    first_logits: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Respondent:
    """One side: its engines, and its own token embedding, from ids [S] to [S, E]."""

    name: str
    config: ModelConfig
    vision: Engine
    decoder: Engine
    embed: Callable[[NDArray[np.int64]], np.ndarray]

    def replies(
        self, question: Question, orders: Sequence[Sequence[int]], language: Language
    ) -> list[Reply]:
        """Answer once for each order of the frames, which are watched only once."""
        feeds = {PIXEL_VALUES: question.pixel_values}
        features = self.vision.run(feeds)[VISUAL_FEATURES]
        return [self._reply(question, features[list(order)], language) for order in orders]

    def _reply(self, question: Question, features: np.ndarray, language: Language) -> Reply:
        token_ids = question.token_ids
        embeds_SE = self.embed(np.maximum(token_ids, 0)).copy()
        embeds_SE[token_ids == VISUAL_PLACE] = features.reshape(-1, features.shape[-1])
        rows = len(token_ids) + LONGEST_ANSWER
        session = DecoderSession(self.decoder, self.config, rows)
        logits_V = first_V = session.prefill(embeds_SE, question.segments)
        tokens: list[int] = []
        margin = inf
        while True:
            second, first = np.partition(logits_V, -2)[-2:]
            margin = min(margin, float(first - second))
            token = int(logits_V.argmax())
            if token in language.end_tokens:
                break
            tokens.append(token)
            if len(tokens) == LONGEST_ANSWER:
                break
            logits_V = session.step(self.embed(np.array([token]))[0])
        return Reply(text=language.decode(tokens).strip(), margin=margin, first_logits=first_V)


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

    `perturbed` and `movements` hold the kinds that need time, under each perturbation.
    """

    pytorch: str
    engine: str
    thresholds: Thresholds
    pairs: tuple[Pair, ...]
    perturbed: Mapping[Perturbation, Sequence[Pair]]
    movements: Mapping[Perturbation, Movement]

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
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResult:
    """Ask both sides all items, and those that need time again under every perturbation.

    `advance` gets how many items are done, and how many there are.
    """
    comparison = _Comparison(pytorch, engine, language)
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
    pairs: list[Pair] = field(default_factory=list)
    perturbed: dict[Perturbation, list[Pair]] = field(default_factory=dict)
    movements: dict[Perturbation, Movement] = field(default_factory=dict)

    def ask(self, item: Item) -> None:
        """Ask both sides one item."""
        frames = render([item.clip], self.engine.config.vision.image_size)[0]
        question = self.language.prepare(frames, item.question)
        perturbations = list(Perturbation) if item.kind.needs_time else []
        orders = [
            range(len(frames)),
            *(frame_order(perturbation, item) for perturbation in perturbations),
        ]
        ours, theirs = (
            side.replies(question, orders, self.language) for side in (self.pytorch, self.engine)
        )
        self.pairs.append(_pair(item, ours[0], theirs[0]))
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
