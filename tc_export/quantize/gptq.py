# SPDX-License-Identifier: Apache-2.0
"""GPTQ: what rounding a channel errs is made good by the channels that are not rounded yet.

Channels are rounded one after the other. With H = X^T X of the calibration's inputs, the least
square error of the products is reached when the error of channel k, over the k-th diagonal of the
inverse's Cholesky factor, is spread over the later ones by its row. (Frantar et al., "GPTQ",
arXiv 2210.17323.) A group's scales are chosen when its first channel is reached, from the weights
as they have become; a search among them counts the error of a channel over that diagonal too, since
that is what it costs in the end.

Axes: T tokens, N output channels, K input channels, G channels of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tc_export.dtypes import DType
from tc_export.quantize.grouped import Grouped, held_in, round_by, scale_groups

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: inputs never span all channels."""

BLOCK = 128
"""Channels, at most, whose errors the ones after them are told at once."""


def round_with_inputs(
    weight: Tensor,
    factor_KK: Tensor,
    dtype: DType,
    group_size: int | None,
    scales: torch.dtype,
    *,
    search: bool,
) -> Grouped:
    """Round a weight [N, K] for inputs of which `factor_KK` is the `inverse_factor`.

    Args, and errors, are those of `tc_export.quantize.grouped.round_in_groups`.
    """
    w_NK = weight.to(torch.float32).clone()
    N, K = w_NK.shape
    group_size = group_size or K
    stored_in = held_in(dtype)
    numbers = torch.empty((K, N), dtype=stored_in)
    factors = torch.empty((K // group_size, N), dtype=scales)
    importance_K = factor_KK.diagonal() ** -2
    for start in range(0, K, min(group_size, BLOCK)):
        if start % group_size == 0:
            group = slice(start, start + group_size)
            scale_N1, _ = scale_groups(
                w_NK[:, group], dtype, scales, search=search, importance=importance_K[group]
            )
            factors[start // group_size] = scale_N1[:, 0].to(scales)
        stop = min(start + min(group_size, BLOCK), K)
        block_GN = w_NK[:, start:stop].T.contiguous()
        errors_GN = torch.empty_like(block_GN)
        for row, w_N in enumerate(block_GN):
            k = start + row
            rounded_N = round_by(w_N, scale_N1[:, 0], dtype)
            numbers[k] = rounded_N.to(stored_in)
            torch.div(w_N - rounded_N * scale_N1[:, 0], factor_KK[k, k], out=errors_GN[row])
            block_GN[row + 1 :].addr_(factor_KK[k, k + 1 : stop], errors_GN[row], alpha=-1)
        w_NK[:, stop:].addmm_(errors_GN.T, factor_KK[start:stop, stop:], alpha=-1)
    return Grouped(numbers, factors, dtype)


def inverse_factor(x_TK: Tensor) -> Tensor:
    """The upper Cholesky factor [K, K] of the inverse of X^T X, damped.

    Matrices that share their inputs share it.
    """
    h_KK = x_TK.to(torch.float32).T @ x_TK.to(torch.float32)
    diagonal = h_KK.diagonal()
    h_KK.diagonal().add_(DAMPING * diagonal.mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h_KK))
    del h_KK
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
