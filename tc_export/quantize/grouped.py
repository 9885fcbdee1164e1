# SPDX-License-Identifier: Apache-2.0
"""Rounding a matrix to numbers of few bits with a scale for each group: no zero point.

Axes: N output channels, K input channels, G channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tc_export.checkpoint.four_bits import E2M1, NVFP4_GROUP, number_of, pack_int4
from tc_export.dtypes import DType

ENDS = {DType.INT4: (-8, 7), DType.INT8: (-127, 127), DType.FP8: (-448, 448)}
"""The smallest and the largest number of a weight. Of four bits all sixteen count: there is one
more below zero than above."""

SHRINKINGS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the scale that holds a whole group, which a search tries: with a smaller one weights
are cut off."""

SMALLEST_FP8 = 2.0**-9
"""The smallest number of E4M3 above zero."""

BLOCK_NUMBERS = 1 << 20
"""Numbers that are rounded at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Grouped:
    """Numbers [K, N] in eight bits each, of a format that may have fewer, and scales [K / G, N].

    NVFP4's numbers are their codes. `input_scale` [1] is there where what enters the product is
    rounded too, `global_scale` [1] where scales have eight bits.
    """

    numbers: Tensor
    scales: Tensor

    numbers_in: DType = DType.INT8
    input_scale: Tensor | None = None
    global_scale: Tensor | None = None

    def stored(self) -> tuple[Tensor, Tensor]:
        """Both as they lie on the disk: see `tc_export.checkpoint.quantized`."""
        if self.numbers_in.bits == 4:
            return pack_int4(self.numbers).view(len(self.numbers), -1), self.scales
        return self.numbers, self.scales

    def widened(self) -> Tensor:
        """The weight [N, K] that they stand for, in float32."""
        K, N = self.numbers.shape
        numbers, scales = self.numbers.to(torch.float32), self.scales.to(torch.float32)
        if self.global_scale is not None:
            numbers, scales = number_of(self.numbers), scales * self.global_scale
        groups = numbers.view(len(scales), -1, N)
        return (groups * scales[:, None]).view(K, N).T


def round_in_groups(
    weight: Tensor,
    dtype: DType,
    group_size: int | None,
    scales: torch.dtype,
    *,
    search: bool,
    importance: Tensor | None = None,
) -> Grouped:
    """Round a weight [N, K] of finite numbers.

    Args:
        weight: what is rounded; K is a multiple of `group_size`.
        dtype: of the numbers.
        group_size: channels that share a scale; None for all K.
        scales: their format; numbers are rounded with scales as it holds them.
        search: choose each group's scale by the mean square error.
        importance: of each channel [K] in that; None where all count alike.

    Raises:
        OverflowError: a scale is larger than its format holds.
    """
    N, K = weight.shape
    if dtype is DType.NVFP4:
        return round_to_nvfp4(weight, search=search, importance=importance)
    group_size = group_size or K
    stored_in = held_in(dtype)
    numbers = torch.empty((K, N), dtype=stored_in)
    factors = torch.empty((K // group_size, N), dtype=scales)
    counts = None if importance is None else importance.view(-1, group_size)
    for rows in _blocks(N, K):
        groups = weight[rows].to(torch.float32).view(-1, K // group_size, group_size)
        scale, rounded = scale_groups(groups, dtype, scales, search=search, importance=counts)
        numbers[:, rows] = rounded.view(-1, K).T.to(stored_in)
        factors[:, rows] = scale[..., 0].T.to(scales)
    return Grouped(numbers, factors, dtype)


def round_to_nvfp4(weight: Tensor, *, search: bool, importance: Tensor | None = None) -> Grouped:
    """Round a weight [N, K] to E2M1 with scales of eight bits in groups of 16, and a global one.

    The largest weight of all gets the largest scale, and in its group the largest number.
    """
    N, K = weight.shape
    largest = max(float(weight.abs().max()), torch.finfo(torch.float32).tiny * 1e6)
    largest_scale = ENDS[DType.FP8][1]
    overall = torch.tensor([largest / (E2M1[-1] * largest_scale)])
    counts = None if importance is None else importance.view(-1, NVFP4_GROUP)
    codes = torch.empty((K, N), dtype=torch.uint8)
    factors = torch.empty((K // NVFP4_GROUP, N), dtype=DType.FP8.torch)
    for rows in _blocks(N, K):
        groups = weight[rows].to(torch.float32).view(-1, K // NVFP4_GROUP, NVFP4_GROUP) / overall
        most = groups.abs().amax(dim=-1, keepdim=True)
        best = torch.full_like(most, torch.inf)
        code, factor = torch.empty_like(groups, dtype=torch.uint8), torch.empty_like(most)
        for share in SHRINKINGS if search else SHRINKINGS[:1]:
            tried = (most * share / E2M1[-1]).clamp_(SMALLEST_FP8, largest_scale)
            tried = tried.to(DType.FP8.torch).to(torch.float32)
            found = _codes(groups / tried)
            error = _error(groups, number_of(found), tried, counts)
            better = error < best
            best = torch.where(better, error, best)
            factor, code = torch.where(better, tried, factor), torch.where(better, found, code)
        codes[:, rows] = code.view(-1, K).T
        factors[:, rows] = factor[..., 0].T.to(DType.FP8.torch)
    return Grouped(codes, factors, DType.NVFP4, global_scale=overall)


def _codes(numbers: Tensor) -> Tensor:
    """Codes of the nearest numbers in E2M1; between two the one with the even code."""
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(E2M1)])
    size = numbers.abs()
    below = torch.bucketize(size, middles)
    above = torch.bucketize(size, middles, right=True)
    code = torch.where(below % 2 == 0, below, above)
    return (code + 8 * (numbers < 0)).to(torch.uint8)


def scale_groups(
    groups: Tensor,
    dtype: DType,
    scales: torch.dtype,
    *,
    search: bool,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scales [..., 1] of groups [..., G] in float32, and the groups rounded by them.

    `importance` [..., G] is as `round_in_groups` has it.

    Raises:
        OverflowError: a scale is larger than its format holds.
    """
    low, high = ENDS[dtype]
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    whole = torch.maximum(lowest / low, highest / high)
    scale = _held(whole, scales, groups)
    rounded = round_by(groups, scale, dtype)
    least = _error(groups, rounded, scale, importance)
    for share in SHRINKINGS[1:] if search else ():
        tried = _held(whole * share, scales, groups)
        found = round_by(groups, tried, dtype)
        error = _error(groups, found, tried, importance)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried, scale)
        rounded = torch.where(better, found, rounded)
    return scale, rounded


def _blocks(N: int, K: int) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // K)
    for start in range(0, N, step):
        yield slice(start, min(start + step, N))


def _held(scale: Tensor, scales: torch.dtype, groups: Tensor) -> Tensor:
    """Scales in float32, of values that their format holds; never zero."""
    scale = scale.to(scales).to(torch.float32)
    if not scale.isfinite().all():
        raise OverflowError(f"{float(groups.abs().max()):.3g}")
    return scale.clamp(min=torch.finfo(scales).tiny)


def round_by(groups: Tensor, scale: Tensor, dtype: DType) -> Tensor:
    """The nearest numbers that the format holds, in float32."""
    numbers = (groups / scale).clamp_(*ENDS[dtype])
    return numbers.to(dtype.torch).to(torch.float32) if dtype is DType.FP8 else numbers.round_()


def held_in(dtype: DType) -> torch.dtype:
    """The format of eight bits that numbers are in memory in: whole ones of four bits too."""
    return dtype.torch if dtype is DType.FP8 else torch.int8


def _error(groups: Tensor, rounded: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
    error = (rounded * scale - groups).square_()
    if importance is not None:
        error *= importance
    return error.sum(dim=-1, keepdim=True)
