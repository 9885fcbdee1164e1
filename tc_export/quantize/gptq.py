# SPDX-License-Identifier: Apache-2.0
"""GPTQ: what rounding a channel errs is made good by the channels that are not rounded yet.

Channels are rounded one after the other. With H = X^T X of the calibration's inputs, the least
square error of the products is reached when the error of channel k, over the k-th diagonal of the
inverse's Cholesky factor, is spread over the later ones by its row. (Frantar et al., "GPTQ",
arXiv 2210.17323.) A group's scales are chosen when its first channel is reached, from the weights
as they have become.

Axes: T tokens, N output channels, K input channels, G channels of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tc_export.dtypes import DType
from tc_export.quantize.grouped import Grouped, round_by, scale_groups

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: inputs never span all channels."""


def round_with_inputs(
    weight: Tensor,
    x_TK: Tensor,
    dtype: DType,
    group_size: int,
    scales: torch.dtype,
    *,
    search: bool,
) -> Grouped:
    """Round a weight [N, K] for inputs as `x_TK`.

    Args, and errors, are those of `tc_export.quantize.grouped.round_in_groups`.
    """
    w_NK = weight.to(torch.float32).clone()
    N, K = w_NK.shape
    factor_KK = _factor(x_TK)
    numbers = torch.empty((K, N), dtype=torch.int8)
    factors = torch.empty((K // group_size, N), dtype=scales)
    for start in range(0, K, group_size):
        group = slice(start, start + group_size)
        scale_N1, _ = scale_groups(w_NK[:, group], dtype, scales, search=search)
        factors[start // group_size] = scale_N1[:, 0].to(scales)
        errors_NG = torch.empty((N, group_size))
        for k in range(start, start + group_size):
            rounded_N = round_by(w_NK[:, k], scale_N1[:, 0], dtype)
            numbers[k] = rounded_N.to(torch.int8)
            error_N = (w_NK[:, k] - rounded_N * scale_N1[:, 0]) / factor_KK[k, k]
            later = slice(k + 1, start + group_size)
            w_NK[:, later] -= error_N[:, None] * factor_KK[k, later]
            errors_NG[:, k - start] = error_N
        w_NK[:, start + group_size :] -= errors_NG @ factor_KK[group, start + group_size :]
    return Grouped(numbers, factors, dtype)


def _factor(x_TK: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of X^T X, damped."""
    h_KK = x_TK.to(torch.float32).T @ x_TK.to(torch.float32)
    diagonal = h_KK.diagonal()
    h_KK.diagonal().add_(DAMPING * diagonal.mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h_KK))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
