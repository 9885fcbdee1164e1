# SPDX-License-Identifier: Apache-2.0
"""How far an engine may be from the truth: relative to its number format, never a bare constant.

The truth is the model in float64. Plain PyTorch in the engine's own format makes some error
against it; the engine may make at most `ALLOWED_RATIO` times that, plus a floor for the case that
PyTorch was lucky.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from tc_export.dtypes import DType

ALLOWED_RATIO = 2.0
"""An engine sums in another order than PyTorch: its rounding is of the same size, not the same."""

FLOOR_UNITS = 8.0
"""The floor, in units of the format's epsilon times the largest true magnitude. In a small tensor
PyTorch's own error can be zero by luck; eight roundings of the largest value are still noise."""


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """One tensor of one step, against the truth. Errors are absolute, in the tensor's own unit."""

    stage: str
    step: int
    tensor: str
    engine_error: float
    pytorch_error: float
    tolerance: float
    worst_index: tuple[int, ...]
    true_value: float
    engine_value: float

    @property
    def share(self) -> float:
        """The error as a share of the tolerance; above 1 is a failure."""
        if not self.is_judged:
            return inf
        if not self.tolerance:
            return inf if self.engine_error else 0.0
        return self.engine_error / self.tolerance

    @property
    def is_judged(self) -> bool:
        """False where PyTorch itself leaves the format's range: no error is too large then."""
        return isfinite(self.tolerance)

    @property
    def passed(self) -> bool:
        """True where the engine is within the tolerance (a NaN never is)."""
        return self.is_judged and self.engine_error <= self.tolerance


def compare(
    stage: str,
    step: int,
    tensor: str,
    *,
    truth: np.ndarray,
    pytorch: np.ndarray,
    engine: np.ndarray,
    precision: str,
) -> TensorComparison:
    """Compare an engine's tensor with the truth, and PyTorch's error in the same format.

    Raises:
        ValueError: the shapes differ.
    """
    if not truth.shape == pytorch.shape == engine.shape:
        raise ValueError(f"{tensor}: shapes {truth.shape}, {pytorch.shape}, {engine.shape} differ")
    errors = np.abs(engine.astype(np.float64) - truth)
    # A NaN or an infinity is infinitely wrong, and argmax then points at it.
    errors = np.where(np.isfinite(errors), errors, np.inf)
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    pytorch_error = float(np.abs(pytorch.astype(np.float64) - truth).max())
    floor = FLOOR_UNITS * DType(precision).epsilon * float(np.abs(truth).max())
    return TensorComparison(
        stage=stage,
        step=step,
        tensor=tensor,
        engine_error=float(errors[worst]),
        pytorch_error=pytorch_error,
        tolerance=ALLOWED_RATIO * pytorch_error + floor,
        worst_index=tuple(int(i) for i in worst),
        true_value=float(truth[worst]),
        engine_value=float(engine[worst]),
    )
