# SPDX-License-Identifier: Apache-2.0
"""What one layer may err by, token by token: a multiple of PyTorch's own errors in the format.

A layer's isolated error is that of a handful of sums, so PyTorch's draws are a good measure of it.
They are taken per token, since real models have tokens whose hidden states are a thousand times
those of others; a tolerance of the whole tensor would hide every fault at the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FACTOR = 8.0
"""What is compared is the worst of hundreds of numbers at each of thousands of tokens, against two
draws. With a factor of 4 a good graph of real weights (SmolLM2-135M in float32, 30 layers, two
sequences of 400 tokens or less) used 89 % of its tolerance at its worst token, and the smallest
fault that is planted in the demo model (GELU by tanh) was 22 times its tolerance. With this factor
the smallest in SmolLM2-135M, a norm's epsilon of 1e-3 in layer 15, is 3.7 times its tolerance."""

FLOOR_UNITS = 8.0
"""In epsilons of the format times the token's largest true value; PyTorch may be exact by luck."""

Floats = NDArray[np.float64]


def token_errors(values: np.ndarray, truth: np.ndarray) -> Floats:
    """Largest absolute error [S] of each token.

    Infinite where a value is not a number, and everywhere where the shapes differ.
    """
    if values.shape != truth.shape:
        return np.full(len(truth), np.inf)
    error = np.abs(values.astype(np.float64) - truth).reshape(len(truth), -1).max(axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def magnitudes(truth: np.ndarray) -> Floats:
    """Largest true value [S] of each token."""
    found: Floats = np.abs(truth).reshape(len(truth), -1).max(axis=1).astype(np.float64)
    return found


def token_tolerances(truth: np.ndarray, draws: Sequence[np.ndarray], epsilon: float) -> Floats:
    """The error [S] that each token may have.

    Args:
        truth: [S, ...] in float64.
        draws: what PyTorch makes in the format, each [S, ...].
        epsilon: of the format.

    Infinite where PyTorch itself leaves the range of the format.
    """
    noise = np.max([token_errors(draw, truth) for draw in draws], axis=0)
    scale = magnitudes(truth)
    finite = np.isfinite(noise) & (scale > 0)
    # A token at which all draws were lucky may err as much as tokens usually do.
    usual = float(np.median(noise[finite] / scale[finite])) if finite.any() else 0.0
    band: Floats = FACTOR * np.maximum(noise, usual * scale) + FLOOR_UNITS * epsilon * scale
    return band
