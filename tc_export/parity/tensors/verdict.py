# SPDX-License-Identifier: Apache-2.0
"""The verdict on one tensor of all scenarios: on single tokens, and on the bulk of them.

1. A token is judged by its largest error. Its limit is the factor times the token's noise.
2. The tokens of a call are judged together by the median of their root mean square errors over
   their noise: a fault that moves all a little shows here before any single one is outside.
3. Ill-conditioned tokens, whose noise is of another order, are named and counted, and not judged;
   where they are too many nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from tc_export.parity.tensors.tolerance import (
    ILL_CONDITIONED,
    ILL_SHARE,
    Noise,
    TokenErrors,
    degrees_of,
    factor_of,
    join_noise,
    over,
    ratios_of_draws,
    scale_of,
)


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
        median_factor: what the median of a call's tokens may be, over their noise.
        median_ratio: the largest median of any call.
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
        """True where enough was judged, and no call's median is moved."""
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
    """What all scenarios of a graph are judged by."""

    degrees: float
    factor: float
    median_factor: float
    median_scale: float
    rate: float


def judge(
    measured: Sequence[Measured], false_alarm_rate: float
) -> tuple[list[TensorComparison], list[NoiseVerdict]]:
    """Judge one graph's tensor in all scenarios; the limits share one rate of false alarms."""
    whole = join_noise([x.noise for x in measured])
    median_scale = float(np.median(scale_of(whole.largest, whole.floor)))
    ill = [_ill_conditioned(x.noise, median_scale) for x in measured]
    share = float(np.concatenate(ill).mean())
    limits = _limits(measured, ill, false_alarm_rate, median_scale)
    comparisons, verdicts = [], []
    for x, left_out in zip(measured, ill, strict=True):
        found = [_compare(x, step, left_out, limits) for step in range(len(x.shapes))]
        comparisons += found
        ratio = max(y.ratio for y in found)
        verdicts.append(_verdict(x, left_out, limits, ratio, share, len(measured)))
    return comparisons, verdicts


def _ill_conditioned(noise: Noise, median_scale: float) -> np.ndarray:
    """Which tokens [T] are; a token whose draws leave the format's range is not excused so."""
    scale = scale_of(noise.largest, noise.floor)
    ill = (scale > ILL_CONDITIONED * median_scale) | (_spread(noise) > ILL_CONDITIONED)
    found: np.ndarray = ill & np.isfinite(noise.largest).all(axis=0)
    return found


def _spread(noise: Noise) -> np.ndarray:
    """The largest error of a draw over the median draw's, [T]."""
    return over(noise.largest.max(axis=0), np.hypot(np.median(noise.largest, axis=0), noise.floor))


def _limits(
    measured: Sequence[Measured],
    ill: Sequence[np.ndarray],
    false_alarm_rate: float,
    median_scale: float,
) -> _Limits:
    """Half of the false alarms are the single tokens', and half the medians'."""
    draws = measured[0].noise.draws
    degrees, of_medians, tokens, groups = [], [], 0, 0
    for x, left_out in zip(measured, ill, strict=True):
        single = ratios_of_draws(x.noise.largest, x.noise.floor)[:, ~left_out]
        degrees.append(degrees_of(single, draws))
        tokens += single.shape[1]
        bulk = ratios_of_draws(x.noise.rms, x.noise.floor)
        medians = [_median(bulk[:, group], left_out[group]) for group in _groups(x)]
        of_medians.append(np.stack(medians, axis=1))
        groups += len(medians)
    least = min(degrees)
    median_degrees = degrees_of(np.concatenate(of_medians, axis=1), draws)
    return _Limits(
        degrees=least,
        factor=factor_of(least, draws, false_alarm_rate / 2 / max(tokens, 1)),
        median_factor=factor_of(median_degrees, draws, false_alarm_rate / 2 / groups),
        median_scale=median_scale,
        rate=false_alarm_rate,
    )


def _groups(x: Measured) -> list[np.ndarray]:
    """Tokens whose median is taken: those of a call; of calls of one token, all together."""
    calls = [np.arange(call.start, call.stop) for call in x.calls()]
    single = [call for call in calls if len(call) == 1]
    groups = [call for call in calls if len(call) > 1]
    return [*groups, *([np.concatenate(single)] if single else [])]


def _median(ratios: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """The median over tokens of ratios [..., tokens]; zero where all are left out."""
    kept = ratios[..., ~left_out]
    found: np.ndarray = np.median(kept, axis=-1) if kept.shape[-1] else np.zeros(ratios.shape[:-1])
    return found


def _compare(x: Measured, step: int, ill: np.ndarray, limits: _Limits) -> TensorComparison:
    call = x.calls()[step]
    scale = scale_of(x.noise.largest, x.noise.floor)[call]
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
    x: Measured, ill: np.ndarray, limits: _Limits, ratio: float, share: float, scenarios: int
) -> NoiseVerdict:
    bulk = over(x.engine.rms, scale_of(x.noise.rms, x.noise.floor))
    groups = _groups(x)
    medians = [float(_median(bulk[group], ill[group])) for group in groups]
    worst = int(np.argmax(medians))
    scale = scale_of(x.noise.largest, x.noise.floor)
    spread = _spread(x.noise)
    step = next(i for i, call in enumerate(x.calls()) if groups[worst][0] < call.stop)
    return NoiseVerdict(
        stage=x.stage,
        tensor=x.tensor,
        tokens=x.noise.tokens,
        draws=x.noise.draws,
        degrees=limits.degrees,
        factor=limits.factor,
        ratio=ratio,
        median_factor=limits.median_factor,
        median_ratio=medians[worst],
        median_step=step,
        false_alarm_rate=limits.rate / scenarios,
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
