# SPDX-License-Identifier: Apache-2.0
"""The verdict on one tensor of all scenarios: on single tokens, and on the bulk of them.

1. A token is judged by its largest error. Its limit is the factor times the token's noise.
2. The tokens of a call (of several, where they are few) are judged together by the median of their
   root mean square errors over their noise: a fault that moves all a little shows here before any
   single one is outside.
3. Ill-conditioned tokens, whose noise is of another order, are named and counted, and not judged;
   where they are too many nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite

import numpy as np

from tc_export.parity.tensors.tolerance import (
    ILL_CONDITIONED,
    ILL_SHARE,
    Noise,
    TokenErrors,
    degrees_of,
    degrees_of_medians,
    factor_of,
    join_noise,
    over,
    ratios_of_draws,
)

GROUP_TOKENS = 16
"""Fewest tokens whose median says more than one of them."""


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """One tensor of one call, against the truth. Errors are absolute, in the tensor's own unit.

    The values are those of the worst token: the one whose error is the most times its noise.
    `worst_index` is the place in the tensor; `row` the token's in its sequence.
    """

    stage: str
    step: int
    tensor: str
    engine_error: float
    pytorch_error: float
    tolerance: float
    worst_index: tuple[int, ...]
    row: int
    true_value: float
    engine_value: float
    ratio: float
    factor: float

    @property
    def share(self) -> float:
        """The error as a share of the tolerance; above 1 is a failure."""
        return self.ratio / self.factor if self.is_judged else inf

    @property
    def is_judged(self) -> bool:
        """False where PyTorch itself leaves the format's range: no error is too large then."""
        return isfinite(self.tolerance)

    @property
    def passed(self) -> bool:
        """True where the engine is within the tolerance (a NaN never is)."""
        return self.is_judged and self.ratio <= self.factor


@dataclass(frozen=True, kw_only=True)
class IllConditionedToken:
    """A token at which PyTorch's own draws part by orders of magnitude.

    `scale` is its noise, in the tensor's unit; `times_median` that over the median token's;
    `spread` the largest error of a draw over the median draw's.
    """

    row: int
    scale: float
    times_median: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class NoiseVerdict:
    """One scenario's tokens as a whole, in one graph and one arithmetic.

    Attributes:
        draws: runs of PyTorch that the noise was measured by.
        degrees: directions that the noise has; the fewer, the further may a single token lie.
        factor: what a token's largest error may be, over its noise.
        ratio: the largest that was found at a well-conditioned token.
        median_factor: what the median of a group's tokens may be, over their noise.
        median_ratio: the largest median of any group.
        median_step: the call where that group begins.
        false_alarm_rate: how likely these limits fail an engine without fault.
        ill_conditioned: tokens that are not judged.
        ill_conditioned_share: their share of this graph's tokens in all scenarios.
    """

    stage: str
    tensor: str
    tokens: int
    draws: int
    degrees: float
    factor: float
    ratio: float
    median_factor: float
    median_ratio: float
    median_step: int
    false_alarm_rate: float
    ill_conditioned: tuple[IllConditionedToken, ...]
    ill_conditioned_share: float

    @property
    def is_judged(self) -> bool:
        """False where so many tokens are ill-conditioned that the rest says little."""
        return self.ill_conditioned_share <= ILL_SHARE

    @property
    def passed(self) -> bool:
        """True where enough was judged, and no group's median is moved."""
        return self.is_judged and self.median_ratio <= self.median_factor


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One tensor of one scenario: what the engine errs, and what draws of PyTorch do.

    `shapes` are those of each call's tensor; `rows` [T] the tokens' places in their sequence.
    `values` and `true_values` [T] stand where the engine errs most.
    """

    stage: str
    tensor: str
    shapes: Sequence[tuple[int, ...]]
    rows: np.ndarray
    noise: Noise
    engine: TokenErrors
    values: np.ndarray
    true_values: np.ndarray

    def calls(self) -> list[slice]:
        """The tokens of each call."""
        ends = np.cumsum([int(np.prod(shape[:-1])) for shape in self.shapes])
        return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _Limits:
    """What all scenarios of a graph are judged by; `rate` is each scenario's of false alarms."""

    degrees: float
    factor: float
    median_scale: float
    rate: float


def judge(
    measured: Sequence[Measured], false_alarm_rate: float
) -> tuple[list[TensorComparison], list[NoiseVerdict]]:
    """Judge one graph's tensor in all scenarios; the limits share one rate of false alarms."""
    whole = join_noise([x.noise for x in measured])
    median_scale = float(np.median(whole.largest_scale))
    ill = [_ill_conditioned(x.noise, median_scale) for x in measured]
    share = float(np.concatenate(ill).mean())
    limits = _limits(measured, ill, false_alarm_rate, median_scale)
    comparisons, verdicts = [], []
    for x, left_out in zip(measured, ill, strict=True):
        found = [_compare(x, step, left_out, limits) for step in range(len(x.shapes))]
        comparisons += found
        ratio = max(y.ratio for y in found)
        verdicts.append(_verdict(x, left_out, limits, ratio, share))
    return comparisons, verdicts


def _ill_conditioned(noise: Noise, median_scale: float) -> np.ndarray:
    """Which tokens [T] are; a token whose draws leave the format's range is not excused so."""
    times = np.maximum(over(noise.largest_scale, np.array(median_scale)), _spread(noise))
    found: np.ndarray = (times > ILL_CONDITIONED) & np.isfinite(noise.largest).all(axis=0)
    return found


def _spread(noise: Noise) -> np.ndarray:
    """The largest error of a draw over the median draw's, [T]."""
    middle = np.hypot(np.median(noise.largest, axis=0), noise.largest_floor)
    return over(noise.largest.max(axis=0), middle)


def _limits(
    measured: Sequence[Measured],
    ill: Sequence[np.ndarray],
    false_alarm_rate: float,
    median_scale: float,
) -> _Limits:
    """The factor takes half of the false alarms; the other half is the medians'."""
    draws = measured[0].noise.draws
    ratios = [
        ratios_of_draws(x.noise.largest, x.noise.largest_floor)[:, ~left_out]
        for x, left_out in zip(measured, ill, strict=True)
    ]
    together = np.concatenate(ratios, axis=1)
    degrees = min(degrees_of(x, draws) for x in (*ratios, together))
    tokens = max(1, together.shape[1])
    return _Limits(
        degrees=degrees,
        factor=factor_of(degrees, draws, false_alarm_rate / 2 / tokens),
        median_scale=median_scale,
        rate=false_alarm_rate / len(measured),
    )


def _groups(x: Measured) -> list[slice]:
    """Tokens whose median is taken: a call's, or consecutive calls' until they are enough."""
    stops = [0]
    for call in x.calls():
        if call.stop - stops[-1] >= GROUP_TOKENS:
            stops.append(call.stop)
    if len(stops) > 1:
        stops.pop()
    stops.append(x.noise.tokens)
    return [slice(start, stop) for start, stop in pairwise(stops)]


@dataclass(frozen=True)
class _Medians:
    """The largest median of any group, what it may be, and the call where that group begins."""

    ratio: float
    factor: float
    step: int


def _medians(x: Measured, ill: np.ndarray, limits: _Limits) -> _Medians:
    """The group whose median is most moved, and how far a median may be in this scenario."""
    groups = [group for group in _groups(x) if not ill[group].all()]
    if not groups:
        return _Medians(0.0, inf, 0)

    def medians(errors: np.ndarray) -> np.ndarray:
        ratios = over(errors, x.noise.rms_scale)
        found = [np.median(ratios[..., g][..., ~ill[g]], axis=-1) for g in groups]
        return np.stack(found, axis=-1)

    degrees = degrees_of_medians(medians(np.hypot(x.noise.rms, x.noise.rms_floor)))
    moved = medians(x.engine.rms)
    worst = int(moved.argmax())
    return _Medians(
        ratio=float(moved[worst]),
        factor=factor_of(degrees, x.noise.draws, limits.rate / 2 / len(groups)),
        step=next(i for i, call in enumerate(x.calls()) if groups[worst].start < call.stop),
    )


def _compare(x: Measured, step: int, ill: np.ndarray, limits: _Limits) -> TensorComparison:
    call = x.calls()[step]
    scale = x.noise.largest_scale[call]
    errors = x.engine.largest[call]
    # A token whose draws left the range has an infinite scale: it is the worst, and fails.
    ratios = np.where(np.isfinite(scale), over(errors, scale), np.inf)
    judged = ~ill[call] | ~np.isfinite(errors)
    worst = int(np.where(judged, ratios, -1.0).argmax())
    token = call.start + worst
    shape = x.shapes[step]
    return TensorComparison(
        stage=x.stage,
        step=step,
        tensor=x.tensor,
        engine_error=float(errors[worst]),
        pytorch_error=float(x.noise.largest[:, token].max()),
        tolerance=limits.factor * float(scale[worst]),
        worst_index=(
            *(int(i) for i in np.unravel_index(worst, shape[:-1])),
            int(x.engine.place[token]),
        ),
        row=int(x.rows[token]),
        true_value=float(x.true_values[token]),
        engine_value=float(x.values[token]),
        ratio=float(ratios[worst]) if judged[worst] else 0.0,
        factor=limits.factor,
    )


def _verdict(
    x: Measured, ill: np.ndarray, limits: _Limits, ratio: float, share: float
) -> NoiseVerdict:
    medians = _medians(x, ill, limits)
    scale, spread = x.noise.largest_scale, _spread(x.noise)
    return NoiseVerdict(
        stage=x.stage,
        tensor=x.tensor,
        tokens=x.noise.tokens,
        draws=x.noise.draws,
        degrees=limits.degrees,
        factor=limits.factor,
        ratio=ratio,
        median_factor=medians.factor,
        median_ratio=medians.ratio,
        median_step=medians.step,
        false_alarm_rate=limits.rate,
        ill_conditioned=tuple(
            IllConditionedToken(
                row=int(x.rows[token]),
                scale=float(scale[token]),
                times_median=float(scale[token] / limits.median_scale),
                spread=float(spread[token]),
            )
            for token in np.flatnonzero(ill)
        ),
        ill_conditioned_share=share,
    )
