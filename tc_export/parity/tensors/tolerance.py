# SPDX-License-Identifier: Apache-2.0
"""How far an engine may be from the truth: as far as PyTorch's own draws are, token by token.

The truth is the model in float64, with weights rounded as the engine's format rounds them. Several
draws of PyTorch in that format (`tc_export.parity.noise`) say how much noise each token has. The
engine's error is divided by it, and the limits of that ratio follow from how the draws themselves
lie to one another: docs/numerics.md derives them.

Axes: T tokens, V values of a token (logits or channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from tc_export.dtypes import DType
from tc_export.parity.tensors.f_distribution import (
    degrees_that_exceed,
    degrees_that_vary,
    f_quantile,
)

NOISIER = 1.5
"""An engine rounds at other places than PyTorch: its noise may be so many times that of a draw."""

FALSE_ALARMS = 1e-4
"""How likely a run may fail though nothing is wrong. All limits of a run share it."""

FLOOR_UNITS = 0.5
"""Least noise of a token, in units of the format's epsilon times the token's values: one rounding
of the result. In a small tensor all draws may be exact by luck."""

ILL_CONDITIONED = 32.0
"""A token is ill-conditioned where its noise is so many times the median token's, or where one draw
errs so many times as much as the median draw."""

ILL_SHARE = 0.15
"""The share of a graph's tokens that may be: twice the most of any run with real weights. Where
more are, there is too little to judge by. No fault of the engine makes any: draws of PyTorch do."""

ABSOLUTE_UNITS = 8.0
"""Least absolute tolerance, in units of epsilon times the tensor's largest value. It is for devices
whose builders fuse and sum as they like, and none of which could be measured here."""

FEWEST_DEGREES = 1.0
"""Noise along one line: the worst case."""

_TOKENS_AT_ONCE = 64
"""Bounds the errors in memory: logits of a large vocabulary are many."""

_QUANTILES = (0.9, 0.99, 0.999)
_BEYOND = 5
"""So many ratios of draws must lie beyond a quantile for it to be believed."""


@dataclass(frozen=True)
class TokenErrors:
    """Errors [T] against the truth. What is not finite is infinitely wrong.

    `rms` is the root mean square over a token's values; `largest` the largest, which lies at the
    index `place` in the token.
    """

    rms: np.ndarray
    largest: np.ndarray
    place: np.ndarray


def token_errors(values: np.ndarray, truth: np.ndarray) -> TokenErrors:
    """Errors of values [..., V].

    Raises:
        ValueError: the shapes differ.
    """
    if values.shape != truth.shape:
        raise ValueError(f"shapes {values.shape}, {truth.shape} differ")
    size = truth.shape[-1]
    values, truth = values.reshape(-1, size), truth.reshape(-1, size)
    parts = [
        _errors_of_some(values[start : start + _TOKENS_AT_ONCE], truth[start:][:_TOKENS_AT_ONCE])
        for start in range(0, len(truth), _TOKENS_AT_ONCE)
    ]
    return TokenErrors(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _errors_of_some(
    values: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(values.astype(np.float64) - truth)
    errors[~np.isfinite(errors)] = np.inf
    place = errors.argmax(axis=1)
    largest = errors[np.arange(len(errors)), place]
    return np.sqrt(np.square(errors).mean(axis=1)), largest, place


@dataclass(frozen=True)
class Noise:
    """The noise of T tokens: what each of D draws errs, [D, T], and the floors [T] of both."""

    rms: np.ndarray
    largest: np.ndarray
    rms_floor: np.ndarray
    largest_floor: np.ndarray

    @property
    def rms_scale(self) -> np.ndarray:
        """The noise [T] of the root mean square over a token's values."""
        return scale_of(self.rms, self.rms_floor)

    @property
    def largest_scale(self) -> np.ndarray:
        """The noise [T] of a token's largest error."""
        return scale_of(self.largest, self.largest_floor)

    @property
    def draws(self) -> int:
        """How many there are."""
        return len(self.rms)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return int(self.rms.shape[1])


def measure_noise(
    truth: Sequence[np.ndarray], draws: Sequence[TokenErrors], precision: DType
) -> Noise:
    """The noise of the tokens of tensors [..., V] in a format."""
    values = [x.reshape(-1, x.shape[-1]) for x in truth]
    unit = FLOOR_UNITS * precision.epsilon
    return Noise(
        rms=np.stack([x.rms for x in draws]),
        largest=np.stack([x.largest for x in draws]),
        rms_floor=unit * np.concatenate([np.sqrt(np.square(x).mean(axis=1)) for x in values]),
        largest_floor=unit * np.concatenate([np.abs(x).max(axis=1) for x in values]),
    )


def join_noise(parts: Sequence[Noise]) -> Noise:
    """The noise of all tokens of several tensors."""
    return Noise(
        rms=np.concatenate([x.rms for x in parts], axis=1),
        largest=np.concatenate([x.largest for x in parts], axis=1),
        rms_floor=np.concatenate([x.rms_floor for x in parts]),
        largest_floor=np.concatenate([x.largest_floor for x in parts]),
    )


def scale_of(errors: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The noise [T] that draws with errors [D, T] show: their root mean square, and the floor."""
    scale: np.ndarray = np.sqrt(np.square(errors).mean(axis=0) + np.square(floor))
    return scale


def ratios_of_draws(errors: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Each draw's error over the scale of all others, [D, T]: how an engine without fault lies."""
    count = len(errors)
    others = [scale_of(np.delete(errors, index, axis=0), floor) for index in range(count)]
    return over(errors, np.stack(others))


def over(errors: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Errors over scales; nothing is allowed where the scale is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = errors / scale
    found: np.ndarray = np.where(errors == 0, 0.0, ratios)
    return found


def most_degrees(draws: int) -> float:
    """The most directions that so many draws can tell: their tokens share much of their noise.

    Draws that were judged by three others gave a false alarm where eight were believed.
    """
    return draws + 1.0


def degrees_of(ratios: np.ndarray, draws: int) -> float:
    """In how many directions noise points, by the tail of `ratios_of_draws` [D, T].

    The least that any of its quantiles asks for.
    """
    squares = np.square(ratios[np.isfinite(ratios)])
    least = most = most_degrees(draws)
    for quantile in _QUANTILES:
        tail = 1 - quantile
        if tail * squares.size >= _BEYOND:
            x = float(np.quantile(squares, quantile))
            found = degrees_that_exceed(x, tail, draws - 1, FEWEST_DEGREES, most)
            least = min(least, found)
    return least


def degrees_of_medians(medians: np.ndarray) -> float:
    """In how many directions the noise of groups of tokens points, by draws' medians [D, groups].

    The logarithm of a root mean square of n normal numbers varies by a quarter of the trigamma
    function of n / 2, whatever the noise is.
    """
    usable = medians[:, np.isfinite(medians).all(axis=0) & (medians > 0).all(axis=0)]
    if not usable.size:
        return most_degrees(len(medians))
    variance = float(np.log(usable).var(axis=0, ddof=1).mean())
    return degrees_that_vary(variance, FEWEST_DEGREES, most_degrees(len(medians)))


def factor_of(degrees: float, draws: int, chance: float) -> float:
    """What a ratio exceeds with this chance, where the noise is `NOISIER` than that of the draws.

    A ratio's square is F-distributed: the mean square of `degrees` normal numbers over that of
    `draws` times as many.
    """
    return NOISIER * sqrt(f_quantile(chance, degrees, draws * degrees))


def absolute_tolerance(truth: np.ndarray, draws: Sequence[TokenErrors], precision: DType) -> float:
    """One absolute tolerance for all of a tensor [..., V], for a runtime that knows no tokens.

    Infinite where PyTorch itself leaves the range of the format.
    """
    noise = measure_noise([truth], draws, precision)
    if not np.isfinite(noise.largest).all():
        return float("inf")
    degrees = degrees_of(ratios_of_draws(noise.largest, noise.largest_floor), noise.draws)
    factor = factor_of(degrees, noise.draws, FALSE_ALARMS / noise.tokens)
    measured = factor * float(noise.largest_scale.max())
    return max(measured, ABSOLUTE_UNITS * precision.epsilon * float(np.abs(truth).max()))
