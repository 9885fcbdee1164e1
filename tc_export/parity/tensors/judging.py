# SPDX-License-Identifier: Apache-2.0
"""One graph of one side, and PyTorch's draws in the same arithmetic: what is measured of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.contracts.graph_io import FRAMES_A_CALL, LOGITS, VISUAL_FEATURES
from tc_export.dtypes import DType
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.noise import draws
from tc_export.parity.tensors.sides import Calls
from tc_export.parity.tensors.tolerance import TokenErrors, measure_noise, token_errors
from tc_export.parity.tensors.verdict import Measured

Values = Sequence[Sequence[np.ndarray]]
"""For each scenario, the tensor of each call."""

BatchValues = Sequence[tuple[int, Sequence[np.ndarray]]]
"""Of scenarios that were run as a batch too: which one, and its tensor of each call."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a graph is judged in: its own format, or float32.

    `name` is what a stage is called by, as in "one clip: decoder in float32".
    """

    name: str
    dtype: DType
    baseline: LayerwiseModel
    draws: int


def measure_features(
    arithmetic: Arithmetic,
    scenarios: Sequence[str],
    clips: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    engine: Sequence[np.ndarray],
) -> list[Measured]:
    """What is measured of the features [F, m, E] of each scenario's clips."""
    of_draws = (
        [token_errors(x, y) for x, y in zip(features, truth, strict=True)]
        for features in arithmetic.baseline.feature_draws(clips, draws(arithmetic.draws))
    )
    stages = [f"{x}: vision{arithmetic.name}" for x in scenarios]
    rows = [np.arange(x.shape[0] * x.shape[1]) for x in truth]
    true_calls, calls = (
        [[x[i : i + FRAMES_A_CALL] for i in range(0, len(x), FRAMES_A_CALL)] for x in side]
        for side in (truth, engine)
    )
    return _measure(stages, VISUAL_FEATURES, true_calls, calls, of_draws, arithmetic.dtype, rows)


def measure_logits(
    arithmetic: Arithmetic,
    scenarios: Sequence[str],
    calls: Sequence[Calls],
    truth: Values,
    engine: Values,
    batch: BatchValues = (),
) -> list[Measured]:
    """What is measured of the logits of each scenario's calls, and of those of a batch.

    Nothing that a batch says of a sequence may depend on the others: its noise is the sequence's.
    """
    sequences = [x.sequence for x in calls]
    again = [index for index, _ in batch]

    def errors_of(logits: list[np.ndarray]) -> list[TokenErrors]:
        errors = [_errors_of_calls(x, y) for x, y in zip(logits, truth, strict=True)]
        return errors + [errors[index] for index in again]

    # `map` lets go of a draw's logits, which are as many as the truth's, before it asks for more.
    of_draws = map(errors_of, arithmetic.baseline.logit_draws(sequences, draws(arithmetic.draws)))
    names = [*scenarios, *(f"{scenarios[index]}, in a batch" for index in again)]
    stages = [f"{x}: decoder{arithmetic.name}" for x in names]
    rows = [sequences[index].logits_indices for index in (*range(len(calls)), *again)]
    true_values = [*truth, *(truth[index] for index in again)]
    values = [*engine, *(of_calls for _, of_calls in batch)]
    return _measure(stages, LOGITS, true_values, values, of_draws, arithmetic.dtype, rows)


def _errors_of_calls(whole: np.ndarray, truth: Sequence[np.ndarray]) -> TokenErrors:
    """Errors of a sequence's values at once, against those of its calls."""
    parts = np.split(whole, np.cumsum([len(x) for x in truth])[:-1])
    return _joined([token_errors(x, y) for x, y in zip(parts, truth, strict=True)])


def _joined(errors: Sequence[TokenErrors]) -> TokenErrors:
    return TokenErrors(
        rms=np.concatenate([x.rms for x in errors]),
        largest=np.concatenate([x.largest for x in errors]),
        place=np.concatenate([x.place for x in errors]),
    )


def _measure(
    stages: Sequence[str],
    tensor: str,
    truth: Values,
    engine: Values,
    of_draws: Iterable[Sequence[TokenErrors]],
    dtype: DType,
    rows: Sequence[np.ndarray],
) -> list[Measured]:
    by_scenario = list(zip(*of_draws, strict=True))
    found = []
    for index, stage in enumerate(stages):
        pairs = list(zip(engine[index], truth[index], strict=True))
        errors = _joined([token_errors(x, y) for x, y in pairs])
        values, true_values = (_at(errors.place, [x[side] for x in pairs]) for side in (0, 1))
        found.append(
            Measured(
                stage=stage,
                tensor=tensor,
                shapes=[y.shape for _, y in pairs],
                rows=rows[index],
                noise=measure_noise([y for _, y in pairs], by_scenario[index], dtype),
                engine=errors,
                values=values,
                true_values=true_values,
            )
        )
    return found


def _at(places: np.ndarray, calls: Sequence[np.ndarray]) -> np.ndarray:
    """The values [T] at a place of each token of calls [..., V]."""
    tokens = [x.reshape(-1, x.shape[-1]) for x in calls]
    ends = np.cumsum([len(x) for x in tokens])[:-1]
    return np.concatenate(
        [
            np.take_along_axis(x, at[:, None], axis=1)[:, 0]
            for x, at in zip(tokens, np.split(places, ends), strict=True)
        ]
    )
