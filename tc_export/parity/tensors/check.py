# SPDX-License-Identifier: Apache-2.0
"""The parity check: vision features, prefill logits, every decode step, and the greedy answer.

Three sides go through the same feeds: PyTorch in float64 (the truth), PyTorch in the engine's
format, and the engine. The decoder is fed with the truth's features and with tokens that were drawn
before, so that an error is seen where it arises, and so that a side may take all tokens through one
layer, or one part of a graph, before it needs the next.

The greedy answer is each side's own, with its own features. As long as two sides choose the same
tokens they are fed the same: so the engine is fed the truth's answer, and what it would have said
is known up to the first token that differs, which is all that is judged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    FRAMES_A_CALL,
    LOGITS,
    VISUAL_FEATURES,
)
from tc_export.dtypes import round_to
from tc_export.errors import UnsupportedEnvironment
from tc_export.parity.assets.comparison import AssetComparison
from tc_export.parity.layerwise import GreedyAnswer, LayerwiseModel
from tc_export.parity.tensors.batch import batch_of, logits_of_member
from tc_export.parity.tensors.calls import CallMaker
from tc_export.parity.tensors.scenario import DECODE_STEPS, Scenario, batched
from tc_export.parity.tensors.sides import JudgedSide, TorchSide
from tc_export.parity.tensors.tolerance import TensorComparison, compare
from tc_export.targets import Precisions

STEPS = 7
"""Steps that a check reports: features of three sides, the truth's logits, its answers, and the
logits of the two others."""


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
    """Everything that was compared, and what was left out and why."""

    engine: str
    truth: str
    precision: str
    tensors: tuple[TensorComparison, ...]
    answers: tuple[AnswerComparison, ...]
    assets: tuple[AssetComparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where all passed, and something was computed."""
        verdicts = [x.passed for x in self.tensors] + [x.passed for x in self.answers]
        return bool(verdicts) and all(verdicts) and all(x.passed for x in self.assets)


@dataclass(frozen=True, kw_only=True)
class ReferenceSides:
    """The two sides that the engine is judged by."""

    truth: LayerwiseModel
    baseline: TorchSide


def check_parity(
    references: ReferenceSides,
    engine: JudgedSide,
    precisions: Precisions,
    scenarios: Sequence[Scenario],
    *,
    answer_bytes: int | None = None,
    advance: Callable[[str], None] = lambda phrase: None,
) -> ParityResult:
    """Run every scenario on the truth, on PyTorch in the engine's format, and on the engine.

    Args:
        references: PyTorch in float64, and in the engine's formats.
        engine: what is to be judged.
        precisions: the floating-point formats of its two graphs.
        scenarios: what is run.
        answer_bytes: how much the truth's caches may take while it answers. Longer scenarios give
            no answer then, which is noted. None: all give one.
        advance: called with a phrase after each of `STEPS` steps.

    Raises:
        UnsupportedEnvironment: the profile has no room for any scenario.
    """
    if not scenarios:
        raise UnsupportedEnvironment(
            "the bundle's profile is too small for any parity scenario",
            hint="build with more --max-frames or a larger --max-length",
        )
    check = _Check(references, engine, precisions, scenarios, advance)
    tensors, features = check.vision()
    answering, notes = _with_room(references.truth, scenarios, answer_bytes)
    notes += check.notes()
    logits, answers = check.decoder(features, answering)
    return ParityResult(
        engine=engine.name,
        truth=references.truth.name,
        precision=str(precisions),
        tensors=tuple(tensors + logits),
        answers=tuple(answers),
        notes=tuple(notes),
    )


def _with_room(
    truth: LayerwiseModel, scenarios: Sequence[Scenario], limit: int | None
) -> tuple[list[int], list[str]]:
    """The scenarios whose caches fit together, shortest first; and a note for each other."""
    chosen, notes, used = [], [], 0
    # After random rows there is nothing to answer.
    whole = [index for index, scenario in enumerate(scenarios) if not scenario.rows_before]
    for index in sorted(whole, key=lambda i: scenarios[i].length):
        used += truth.cache_bytes(scenarios[index].length + DECODE_STEPS)
        if limit is None or used <= limit:
            chosen.append(index)
        else:
            notes.append(
                f"{scenarios[index].name}: no greedy answer, since the truth's cache would take "
                f"more memory than is left ({used / 1e9:.2g} of {limit / 1e9:.2g} GB)"
            )
    return sorted(chosen), notes


@dataclass(frozen=True)
class _Features:
    """Visual features of each scenario's frames."""

    truth: list[np.ndarray]
    engine: list[np.ndarray]


class _Check:
    """All scenarios on three sides."""

    def __init__(
        self,
        references: ReferenceSides,
        engine: JudgedSide,
        precisions: Precisions,
        scenarios: Sequence[Scenario],
        advance: Callable[[str], None],
    ) -> None:
        self._truth = references.truth
        self._baseline = references.baseline
        self._engine = engine
        self._precisions = precisions
        self._scenarios = scenarios
        self._advance = advance
        self._config: ModelConfig = references.truth.config
        self._batched = batched(scenarios) if engine.takes_batches else ()

    def notes(self) -> list[str]:
        """What was not run."""
        if self._batched:
            return []
        reason = (
            "the profile has room for one scenario alone"
            if self._engine.takes_batches
            else "the engine takes one sequence at a time"
        )
        return [f"no scenarios were run as a batch: {reason}"]

    def vision(self) -> tuple[list[TensorComparison], _Features]:
        """Compare the visual features of all frames, call by call."""
        dtype = self._precisions.vision.dtype
        seeing = [x for x in self._scenarios if len(x.pixel_values)]
        clips = [round_to(x.pixel_values, dtype) for x in seeing]
        fed = [clip.astype(self._engine.pixel_type) for clip in clips]
        truth = self._truth.features(clips)
        self._advance("vision: PyTorch in float64")
        baseline = self._baseline.features(clips)
        self._advance("vision: PyTorch in the engine's format")
        engine = self._engine.features(fed)
        self._advance("vision: the engine")
        tensors = []
        for index, scenario in enumerate(seeing):
            calls = [
                [x[start : start + FRAMES_A_CALL] for start in range(0, len(x), FRAMES_A_CALL)]
                for x in (truth[index], baseline[index], engine[index])
            ]
            tensors += compare_steps(f"{scenario.name}: vision", VISUAL_FEATURES, dtype, *calls)
        return tensors, _Features(self._for_all(truth), self._for_all(engine))

    def _for_all(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of every scenario, none for one without a frame."""
        rest = iter(features)
        none = np.zeros((0, self._config.tokens_per_frame, self._config.text.hidden_size))
        return [next(rest) if len(x.pixel_values) else none for x in self._scenarios]

    def decoder(
        self, features: _Features, answering: Sequence[int]
    ) -> tuple[list[TensorComparison], list[AnswerComparison]]:
        """Compare logits of prefill and decode steps, and the answers of some scenarios."""
        calls = CallMaker(self._truth, self._precisions.decoder.dtype, self._engine.embeds_type)
        prompts = [calls.prompt(x, y) for x, y in zip(self._scenarios, features.truth, strict=True)]
        judged = [calls.judged(x, y) for x, y in zip(self._scenarios, prompts, strict=True)]
        truth = TorchSide(vision=self._truth, decoder=self._truth).logits(judged)
        self._advance("decoder: PyTorch in float64")
        said = self._truth.greedy(
            [(prompts[i], self._scenarios[i].segments) for i in answering], DECODE_STEPS + 1
        )
        self._advance("greedy answers: PyTorch in float64")
        baseline = self._baseline.logits(judged)
        self._advance("decoder: PyTorch in the engine's format")
        asked = [
            calls.answering(self._scenarios[i], features.engine[i], answer)
            for i, answer in zip(answering, said, strict=True)
        ]
        members = [judged[i] for i in self._batched]
        together = [batch_of(members)] if members else []
        engine = self._engine.logits([*judged, *asked, *together])
        self._advance("decoder: the engine")
        tensors, answers = [], []
        tolerances = []
        for index, scenario in enumerate(self._scenarios):
            found = compare_steps(
                f"{scenario.name}: decoder",
                LOGITS,
                self._precisions.decoder.dtype,
                truth[index],
                baseline[index],
                engine[index],
            )
            tensors += found
            tolerances.append(max(x.tolerance for x in found))
        for place, (index, answer) in enumerate(zip(answering, said, strict=True)):
            logits = engine[len(judged) + place][-len(answer.tokens) :]
            last = [x[-1] for x in logits]
            scenario = self._scenarios[index]
            answers.append(compare_answers(scenario.name, answer, last, tolerances[index]))
        for place, index in enumerate(self._batched):
            tensors += compare_steps(
                f"{self._scenarios[index].name}, in a batch: decoder",
                LOGITS,
                self._precisions.decoder.dtype,
                truth[index],
                baseline[index],
                logits_of_member(engine[-1], members, place),
            )
        return tensors, answers


def compare_steps(
    stage: str,
    tensor: str,
    dtype: str,
    truth: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    engine: Sequence[np.ndarray],
) -> list[TensorComparison]:
    """Compare one tensor of every step through Polygraphy."""
    comparisons: list[TensorComparison] = []
    steps = iter(range(len(truth)))

    def within_tolerance(
        true_values: IterationResult, values: IterationResult
    ) -> OrderedDict[str, bool]:
        step = next(steps)
        found = compare(
            stage,
            step,
            tensor,
            truth=true_values[tensor],
            pytorch=baseline[step],
            engine=values[tensor],
            precision=dtype,
        )
        comparisons.append(found)
        return OrderedDict([(tensor, found.passed)])

    def results(name: str, arrays: Sequence[np.ndarray]) -> tuple[str, list[IterationResult]]:
        return name, [IterationResult({tensor: x}, runner_name=name) for x in arrays]

    # Its summary of what failed is an error to Polygraphy, which prints it on our output.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        pair = RunResults([results("PyTorch", truth), results("engine", engine)])
        Comparator.compare_accuracy(pair, compare_func=within_tolerance)
    return comparisons
