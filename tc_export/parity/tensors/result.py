# SPDX-License-Identifier: Apache-2.0
"""What a parity check found: tensors, greedy answers, noise, and the bundle's other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.parity.assets.comparison import AssetComparison
from tc_export.parity.sequences import GreedyAnswer
from tc_export.parity.tensors.verdict import NoiseVerdict, TensorComparison


@dataclass(frozen=True, kw_only=True)
class AnswerComparison:
    """A greedy answer of both sides; the engine's ends with the first token that differs.

    `margin` is how much the truth's logits prefer its own token to the engine's where the answers
    part: up to twice the logits' tolerance either is right. Where they never do it is the truth's
    smallest gap between its first and second choice.
    """

    scenario: str
    true_tokens: tuple[int, ...]
    engine_tokens: tuple[int, ...]
    margin: float
    tolerance: float

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs."""
        last = len(self.engine_tokens) - 1
        return None if self.engine_tokens == self.true_tokens else last

    @property
    def passed(self) -> bool:
        """True where the answers agree, or part at a tie."""
        return self.first_difference is None or self.margin <= 2 * self.tolerance


def compare_answers(
    scenario: str,
    truth: GreedyAnswer,
    engine_logits: Sequence[np.ndarray],
    tolerance: float,
) -> AnswerComparison:
    """Compare what the truth said with what the engine chooses where it is fed the same.

    `engine_logits` are [V], one for each token of the truth's answer.
    """
    chosen: list[int] = []
    gaps: list[float] = []
    margin = None
    for true_logits, token, logits in zip(truth.logits, truth.tokens, engine_logits, strict=True):
        chosen.append(int(logits.argmax()))
        if chosen[-1] != token:
            margin = float(true_logits[token] - true_logits[chosen[-1]])
            break
        second, first = np.partition(true_logits, -2)[-2:]
        gaps.append(float(first - second))
    return AnswerComparison(
        scenario=scenario,
        true_tokens=tuple(truth.tokens),
        engine_tokens=tuple(chosen),
        margin=min(gaps) if margin is None else margin,
        tolerance=tolerance,
    )


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Everything that was compared, and the scenarios whose answers were left out."""

    engine: str
    truth: str
    precision: str
    tensors: tuple[TensorComparison, ...]
    answers: tuple[AnswerComparison, ...]
    noise: tuple[NoiseVerdict, ...] = ()
    assets: tuple[AssetComparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where all passed, and something was computed."""
        verdicts = [x.passed for x in self.tensors]
        verdicts += [x.passed for x in self.noise] + [x.passed for x in self.answers]
        return bool(verdicts) and all(verdicts) and all(x.passed for x in self.assets)

    @property
    def ill_conditioned_share(self) -> float:
        """Ill-conditioned tokens among all that were compared, in every arithmetic."""
        tokens = sum(x.tokens for x in self.noise)
        return sum(len(x.ill_conditioned) for x in self.noise) / max(tokens, 1)
