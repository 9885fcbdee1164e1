# SPDX-License-Identifier: Apache-2.0
"""The parity check: vision features, prefill logits, every decode step, and the greedy answer.

Three sides go through the same feeds: PyTorch in float64 (the truth), several draws of PyTorch in
the engine's format, and the engine. The decoder is fed with the truth's features and with tokens
that were drawn before, so that an error is seen where it arises, and so that a side may take all
tokens through one layer, or one part of a graph, before it needs the next.

A 16-bit graph that can run here goes through once more with its arithmetic in float32, and is
judged by float32's noise: what is wrong in the graph shows there, whatever its format costs.

The greedy answer is each side's own, with its own features. As long as two sides choose the same
tokens they are fed the same: so the engine is fed the truth's answer, and what it would have said
is known up to the first token that differs, which is all that is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tc_export.config import ModelConfig
from tc_export.dtypes import DType, round_to
from tc_export.errors import UnsupportedEnvironment
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.sequences import GreedyAnswer
from tc_export.parity.tensors.batch import batch_of, logits_of_member
from tc_export.parity.tensors.calls import CallMaker
from tc_export.parity.tensors.judging import (
    Arithmetic,
    BatchValues,
    Values,
    measure_features,
    measure_logits,
)
from tc_export.parity.tensors.result import ParityResult, compare_answers
from tc_export.parity.tensors.scenario import DECODE_STEPS, Scenario, batched
from tc_export.parity.tensors.sides import Calls, JudgedSide, TorchSide
from tc_export.parity.tensors.tolerance import FALSE_ALARMS
from tc_export.parity.tensors.verdict import Measured, NoiseVerdict, TensorComparison, judge
from tc_export.plan.parameters import decoder_count
from tc_export.targets import Precision, Precisions

FLOAT32_WORK = 4e12
"""Products of a run of the decoder in float32: six hundred tokens of seven billion weights."""

MORE_DRAWS = 4
"""So many times the draws are taken where single tokens fail, and no median does: a token whose
error is small in most draws and large in few may have been small in all of them."""

IN_FLOAT32 = " in float32"
"""What the stages of a 16-bit graph are called where its arithmetic is float32."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSides:
    """What the engine is judged by.

    `truth` is float64 with the weights as the engines' formats round them. `baseline` computes in
    these formats, `in_float32` in float32 with the same weights, and rounds no inputs of products;
    `unrounded` is its truth: `truth` itself, unless that rounds them. `draws` are so many of each.
    """

    truth: LayerwiseModel
    unrounded: LayerwiseModel
    baseline: TorchSide
    in_float32: LayerwiseModel
    draws: int


def check_parity(
    references: ReferenceSides,
    engine: JudgedSide,
    precisions: Precisions,
    scenarios: Sequence[Scenario],
    *,
    in_float32: JudgedSide | None = None,
    answer_bytes: int | None = None,
    advance: Callable[[str], None] = lambda phrase: None,
) -> ParityResult:
    """Run every scenario on the truth, on PyTorch in the engine's format, and on the engine.

    Args:
        references: PyTorch in float64, and in the engine's formats.
        engine: what is to be judged.
        precisions: the floating-point formats of its two graphs.
        scenarios: what is run.
        in_float32: the engine's graphs with their arithmetic in float32 and nothing rounded, if
            they run here and would be rounded otherwise.
        answer_bytes: how much the truth's caches may take while it answers. Longer scenarios give
            no answer then, which is noted. None: all give one.
        advance: called with a phrase after each of `count_steps` steps.

    Raises:
        UnsupportedEnvironment: the profile has no room for any scenario.
    """
    if not scenarios:
        raise UnsupportedEnvironment(
            "the bundle's profile is too small for any parity scenario",
            hint="build with more --max-frames or a larger --max-length",
        )
    check = _Check(references, engine, in_float32, precisions, scenarios, advance)
    measured, features = check.vision()
    answering, notes = _with_room(references.truth, scenarios, answer_bytes)
    notes += check.notes()
    logits, said, answered = check.decoder(features, answering)
    tensors, noise = _judge([*measured, *logits])
    names = [scenarios[i].name for i in answering]
    return ParityResult(
        engine=engine.name,
        truth=references.truth.name,
        precision=str(precisions),
        tensors=tuple(tensors),
        answers=tuple(
            compare_answers(name, truth, found, _tolerance_of_answers(name, tensors))
            for name, truth, found in zip(names, said, answered, strict=True)
        ),
        noise=tuple(noise),
        notes=tuple(notes),
    )


def _within_work(config: ModelConfig, scenarios: Sequence[Scenario]) -> list[int]:
    """The scenarios that a 16-bit graph is run with in float32: the shortest, one with a frame.

    A fault of the graph shows in any; the longest would take a large model a quarter of an hour.
    """
    chosen: list[int] = []
    work, has_frame = 0, False
    for index in sorted(range(len(scenarios)), key=lambda i: scenarios[i].length):
        tokens = scenarios[index].length + DECODE_STEPS
        work += tokens * decoder_count(config).matrices
        if not has_frame or work <= FLOAT32_WORK:
            chosen.append(index)
            has_frame |= len(scenarios[index].pixel_values) > 0
    return sorted(chosen)


def _surely(
    arithmetic: Arithmetic, measure: Callable[[Arithmetic], list[Measured]]
) -> list[Measured]:
    """Measure, and once more with more draws where single tokens alone would fail."""
    measured = measure(arithmetic)
    compared, verdicts = judge(measured, FALSE_ALARMS)
    if all(x.passed for x in compared) or not all(x.passed for x in verdicts):
        return measured
    return measure(replace(arithmetic, draws=MORE_DRAWS * arithmetic.draws))


def _judge(
    measured: Sequence[Sequence[Measured]],
) -> tuple[list[TensorComparison], list[NoiseVerdict]]:
    """Judge each graph in each arithmetic; all share the run's rate of false alarms."""
    judged = [judge(x, FALSE_ALARMS / len(measured)) for x in measured]
    tensors = [x for compared, _ in judged for x in compared]
    return tensors, [x for _, verdicts in judged for x in verdicts]


def count_steps(in_float32: JudgedSide | None) -> int:
    """Steps that `check_parity` reports."""
    return 6 if in_float32 is None else 8


def _tolerance_of_answers(scenario: str, tensors: Sequence[TensorComparison]) -> float:
    """The largest tolerance of the scenario's decode steps, which are as an answer's tokens are."""
    found = [x for x in tensors if x.stage == f"{scenario}: decoder"]
    return max(x.tolerance for x in found[-DECODE_STEPS:])


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
        in_float32: JudgedSide | None,
        precisions: Precisions,
        scenarios: Sequence[Scenario],
        advance: Callable[[str], None],
    ) -> None:
        self._references = references
        self._truth = references.truth
        self._engine = engine
        self._in_float32 = in_float32
        self._precisions = precisions
        self._scenarios = scenarios
        self._advance = advance
        self._config: ModelConfig = references.truth.config
        self._seeing = [x for x in scenarios if len(x.pixel_values)]
        self._batched = batched(scenarios) if engine.takes_batches else ()
        self._of_float32 = _within_work(self._config, scenarios)

    def notes(self) -> list[str]:
        """What was not run."""
        return [*self._batch_note(), *self._float32_note()]

    def _float32_note(self) -> list[str]:
        if self._in_float32 is None:
            return []
        left = {*range(len(self._scenarios))} - {*self._of_float32}
        names = ", ".join(self._scenarios[i].name for i in sorted(left))
        return [f"not run in float32, since the model is large: {names}"] if left else []

    def _batch_note(self) -> list[str]:
        if self._batched:
            return []
        reason = (
            "the profile has room for one scenario alone"
            if self._engine.takes_batches
            else "the engine takes one sequence at a time"
        )
        return [f"no scenarios were run as a batch: {reason}"]

    def vision(self) -> tuple[list[list[Measured]], _Features]:
        """Measure the visual features of all frames, call by call, in each arithmetic."""
        precision = self._precisions.vision
        clips = [round_to(x.pixel_values, precision.dtype) for x in self._seeing]
        fed = [clip.astype(self._engine.pixel_type) for clip in clips]
        truth = self._truth.features(clips)
        self._advance("vision: PyTorch in float64")
        engine = self._engine.features(fed)
        self._advance("vision: the engine")
        names = [x.name for x in self._seeing]
        own = self._own(precision, self._references.baseline.vision)
        measured = [measure_features(own, names, clips, truth, engine)]
        if self._in_float32 is not None and precision is not Precision.FLOAT32:
            some = [i for i, x in enumerate(self._seeing) if x.name in self._names_of_float32]
            pixels, true_values = ([of[i] for i in some] for of in (clips, truth))
            found = self._in_float32.features(pixels)
            names = [self._seeing[i].name for i in some]
            measured.append(measure_features(self._wide(), names, pixels, true_values, found))
        self._advance("vision: draws of PyTorch")
        return measured, _Features(self._for_all(truth), self._for_all(engine))

    def _for_all(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of every scenario, none for one without a frame."""
        rest = iter(features)
        none = np.zeros((0, self._config.tokens_per_frame, self._config.text.hidden_size))
        return [next(rest) if len(x.pixel_values) else none for x in self._scenarios]

    def decoder(
        self, features: _Features, answering: Sequence[int]
    ) -> tuple[list[list[Measured]], list[GreedyAnswer], list[list[np.ndarray]]]:
        """Measure logits of prefill and decode steps in each arithmetic.

        Also returned are the truth's answers of some scenarios, and the engine's logits for them.
        """
        calls = CallMaker(self._truth, self._precisions.decoder.dtype, self._engine.embeds_type)
        prompts = [calls.prompt(x, y) for x, y in zip(self._scenarios, features.truth, strict=True)]
        judged = [calls.judged(x, y) for x, y in zip(self._scenarios, prompts, strict=True)]
        whole, said = self._truth.logits_and_answers(
            [x.sequence for x in judged],
            {i: self._scenarios[i].segments for i in answering},
            DECODE_STEPS + 1,
        )
        truth = [x.by_call(logits) for x, logits in zip(judged, whole, strict=True)]
        self._advance("decoder and greedy answers: PyTorch in float64")
        asked = [
            calls.answering(self._scenarios[i], features.engine[i], answer)
            for i, answer in zip(answering, said, strict=True)
        ]
        found, batch = self._engine_logits(judged, asked)
        self._advance("decoder: the engine")
        answered = [
            [logits[-1] for logits in of_call[-len(answer.tokens) :]]
            for of_call, answer in zip(found[len(judged) :], said, strict=True)
        ]
        measured = self._measure_logits(judged, truth, found[: len(judged)], batch)
        return measured, said, answered

    def _engine_logits(
        self, judged: Sequence[Calls], asked: Sequence[Calls]
    ) -> tuple[list[list[np.ndarray]], BatchValues]:
        """What the engine says of each, and of some of the first as a batch."""
        members = [judged[i] for i in self._batched]
        together = [batch_of(members)] if members else []
        found = self._engine.logits([*judged, *asked, *together])
        of_members = [
            (index, logits_of_member(found[-1], members, place))
            for place, index in enumerate(self._batched)
        ]
        return found[: len(judged) + len(asked)], of_members

    def _measure_logits(
        self, calls: Sequence[Calls], truth: Values, engine: Values, batch: BatchValues
    ) -> list[list[Measured]]:
        """What the engine errs, and the graph in float32 where that is to be judged."""
        precision = self._precisions.decoder
        own = self._own(precision, self._references.baseline.decoder)
        measured = [
            _surely(own, lambda a: measure_logits(a, self._names, calls, truth, engine, batch))
        ]
        self._advance("decoder: draws of PyTorch")
        if self._in_float32 is not None and (self._rounds or precision is not Precision.FLOAT32):
            chosen = self._of_float32
            some = [calls[i] for i in chosen]
            found = self._in_float32.logits(some)
            self._advance("decoder: the graph in float32")
            names, true_values = self._names_of_float32, [truth[i] for i in chosen]
            if self._rounds:
                whole = self._references.unrounded.logits([x.sequence for x in some])
                true_values = [x.by_call(y) for x, y in zip(some, whole, strict=True)]
            measured.append(
                _surely(self._wide(), lambda a: measure_logits(a, names, some, true_values, found))
            )
            self._advance("decoder: draws of PyTorch in float32")
        return measured

    @property
    def _rounds(self) -> bool:
        """True where what enters products is rounded."""
        return self._references.unrounded is not self._references.truth

    @property
    def _names(self) -> list[str]:
        return [x.name for x in self._scenarios]

    @property
    def _names_of_float32(self) -> list[str]:
        return [self._names[i] for i in self._of_float32]

    def _own(self, precision: Precision, baseline: LayerwiseModel) -> Arithmetic:
        """The format of a graph."""
        draws = self._references.draws
        return Arithmetic(name="", dtype=precision.dtype, baseline=baseline, draws=draws)

    def _wide(self) -> Arithmetic:
        """Float32, for a graph of 16 bits."""
        return Arithmetic(
            name=IN_FLOAT32,
            dtype=DType.FLOAT32,
            baseline=self._references.in_float32,
            draws=self._references.draws,
        )
