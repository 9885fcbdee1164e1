# SPDX-License-Identifier: Apache-2.0
"""Rounding a matrix to whole numbers with a scale for each group: symmetric, no zero point.

Axes: N output channels, K input channels, G channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tc_export.checkpoint.quantized import pack_int4
from tc_export.dtypes import DType

LARGEST = {DType.INT4: 7, DType.INT8: 127}
"""What the largest weight of a group becomes. One less than the format holds: signs are alike."""

SHRINKINGS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the largest weight that a search tries: beyond it weights are cut off."""

BLOCK_NUMBERS = 1 << 20
"""Numbers that are rounded at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Grouped:
    """Whole numbers [K, N] in eight bits each, of a format that may have fewer, and scales
    [K / G, N]."""

    numbers: Tensor
    scales: Tensor

    numbers_in: DType = DType.INT8

    def stored(self) -> tuple[Tensor, Tensor]:
        """Both as they lie on the disk: see `tc_export.checkpoint.quantized`."""
        if self.numbers_in is DType.INT4:
            return pack_int4(self.numbers).view(len(self.numbers), -1), self.scales
        return self.numbers, self.scales

    def widened(self) -> Tensor:
        """The weight [N, K] that they stand for, in float32."""
        K, N = self.numbers.shape
        groups = self.numbers.view(len(self.scales), -1, N).to(torch.float32)
        return (groups * self.scales.to(torch.float32)[:, None]).view(K, N).T


def round_in_groups(
    weight: Tensor, dtype: DType, group_size: int, scales: torch.dtype, *, search: bool
) -> Grouped:
    """Round a weight [N, K] of finite numbers.

    Args:
        weight: what is rounded; K is a multiple of `group_size`.
        dtype: of the whole numbers.
        group_size: channels that share a scale.
        scales: their format; numbers are rounded with scales as it holds them.
        search: choose each group's scale by the mean square error.

    Raises:
        OverflowError: a scale is larger than its format holds.
    """
    N, K = weight.shape
    numbers = torch.empty((K, N), dtype=torch.int8)
    factors = torch.empty((K // group_size, N), dtype=scales)
    for rows in _blocks(N, K):
        groups = weight[rows].to(torch.float32).view(-1, K // group_size, group_size)
        scale, rounded = scale_groups(groups, dtype, scales, search=search)
        numbers[:, rows] = rounded.view(-1, K).T.to(torch.int8)
        factors[:, rows] = scale[..., 0].T.to(scales)
    return Grouped(numbers, factors, dtype)


def scale_groups(
    groups: Tensor, dtype: DType, scales: torch.dtype, *, search: bool
) -> tuple[Tensor, Tensor]:
    """Scales [..., 1] of groups [..., G] in float32, and the groups rounded by them.

    Raises:
        OverflowError: a scale is larger than its format holds.
    """
    largest = groups.abs().amax(dim=-1, keepdim=True)
    scale = _scale(largest, dtype, scales)
    rounded = round_by(groups, scale, dtype)
    least = _error(groups, rounded, scale)
    for share in SHRINKINGS[1:] if search else ():
        tried = _scale(largest * share, dtype, scales)
        found = round_by(groups, tried, dtype)
        error = _error(groups, found, tried)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried, scale)
        rounded = torch.where(better, found, rounded)
    return scale, rounded


def _blocks(N: int, K: int) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // K)
    for start in range(0, N, step):
        yield slice(start, min(start + step, N))


def _scale(largest: Tensor, dtype: DType, scales: torch.dtype) -> Tensor:
    """Scales in float32, of values that their format holds; never zero."""
    scale = (largest / LARGEST[dtype]).to(scales).to(torch.float32)
    if not scale.isfinite().all():
        raise OverflowError(f"{float(largest.max()):.3g}")
    return scale.clamp(min=torch.finfo(scales).tiny)


def round_by(groups: Tensor, scale: Tensor, dtype: DType) -> Tensor:
    """The nearest whole numbers that the format holds."""
    most = LARGEST[dtype]
    return (groups / scale).round_().clamp_(-most, most)


def _error(groups: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
    return (rounded * scale - groups).square_().sum(dim=-1, keepdim=True)
