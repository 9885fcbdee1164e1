# SPDX-License-Identifier: Apache-2.0
"""What every library's tensors come to: numbers, scales, and the group of each channel.

Axes: N output channels, K input channels, G groups, W words of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tc_export.checkpoint.four_bits import NVFP4_GROUP, codes_in, number_of
from tc_export.dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor

RANGES = {DType.INT4: (-8, 7), DType.INT8: (-128, 127)}
"""The whole numbers that our stored form holds."""


class Misfit(ValueError):
    """The tensors of one weight are not what configuration and table say; the text says how."""


@dataclass(frozen=True)
class Unpacked:
    """A matrix, its zero points subtracted: number times scale is the weight.

    `numbers` [K, N] are whole, or fp8, or codes of NVFP4; `scales` [G, N] are as they lie on the
    disk; `groups` [K] says which row of them a channel has. `global_scale` [1] and `input_scale`
    [1] are there where our stored form has them: see `tc_export.checkpoint.quantized`.
    """

    numbers: Tensor
    scales: Tensor
    groups: Tensor
    input_scale: Tensor | None = None
    global_scale: Tensor | None = None

    def __post_init__(self) -> None:
        """See that every channel has a scale, and that scales and numbers can be ones."""
        _check_groups(self.groups, len(self.scales))
        _check_above_zero(self.scales, "scales")
        if self.input_scale is not None:
            _check_above_zero(self.input_scale, "scales of what enters")
        if self.global_scale is not None:
            _check_above_zero(self.global_scale, "global scales")
            _check_above_zero(self._factors(), "scales times the global one")
        if self.numbers.is_floating_point() and not bool(self.numbers.float().isfinite().all()):
            raise Misfit("some numbers are NaN")

    def _factors(self) -> Tensor:
        """What numbers are multiplied by, [G, N]."""
        if self.global_scale is None:
            return self.scales
        return self.scales.float() * self.global_scale

    def widened(self) -> Tensor:
        """The weight [N, K] in float32: each product is rounded once."""
        numbers = self.numbers if self.global_scale is None else number_of(self.numbers)
        return (numbers.double() * self._factors().double()[self.groups]).float().T.contiguous()

    def in_groups(self, size: int | None, dtype: DType) -> Unpacked:
        """The same weight with a row of scales for so many channels, or all, as it is stored.

        Whole numbers have eight bits each then.

        Raises:
            Misfit: a number is none of the format, or channels that would share a scale do not.
        """
        import torch

        numbers = self.numbers
        if dtype in RANGES:
            lowest, highest = RANGES[dtype]
            least, most = (int(x) for x in numbers.aminmax())
            if least < lowest or most > highest:
                raise Misfit(
                    f"numbers are from {least} to {most} without their zero points, and {dtype} "
                    f"holds {lowest} to {highest}"
                )
            numbers = numbers.to(torch.int8)
        size = size or len(self.groups)
        neighbours = self.groups.view(-1, size)
        if not bool((neighbours == neighbours[:, :1]).all()):
            raise Misfit(
                f"neighbouring channels are of different groups (an order of activations, desc_act "
                f"or actorder): {size} of them share a scale here"
            )
        return replace(
            self,
            numbers=numbers.contiguous(),
            scales=self.scales[neighbours[:, 0]].contiguous(),
            groups=in_order(len(self.groups), size),
        )


def unpack_words(words: Tensor, bits: int, axis: int) -> Tensor:
    """Numbers from 0 on, of four or eight bits, that lie in 32-bit words, the lowest bits first.

    Words [W, C] become [W * 32 / bits, C] along axis 0, and words [R, W] become [R, W * 32 / bits]
    along axis 1.
    """
    import torch

    octets = words.flatten().view(torch.uint8).view(*words.shape, 4)
    if bits == 4:
        octets = torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2)
    if axis == 1:
        return octets.flatten(1)
    return octets.transpose(1, 2).flatten(0, 1)


def in_order(channels: int, group_size: int) -> Tensor:
    """The group [K] of each channel where neighbours make one: 0, 0, ..., 1, 1, ..."""
    import torch

    return torch.arange(channels) // group_size


def subtract_zeros(numbers: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Unpacked:
    """Put together what lies apart: numbers [K, N], zero points and scales [G, N], groups [K].

    Raises:
        Misfit: a channel is of no group, or a scale is none.
    """
    import torch

    _check_groups(groups, len(zeros))
    return Unpacked(numbers.to(torch.int16) - zeros.to(torch.int16)[groups], scales, groups)


def unpack_nvfp4(packed: Tensor, scales: Tensor, global_scale: Tensor) -> Unpacked:
    """NVFP4 as libraries have it: codes of neighbouring channels in bytes [N, K / 2], the first in
    the low half, and scales [N, K / 16] in fp8, which are multiplied by one global scale [1].

    Raises:
        Misfit: a scale is none.
    """
    codes = codes_in(packed).T
    return Unpacked(
        codes, scales.T, in_order(len(codes), NVFP4_GROUP), global_scale=global_scale.float()
    )


def check_middle(zeros: Tensor, bits: int) -> None:
    """See that zero points are where a symmetric form has them: in the middle.

    Raises:
        Misfit: one is elsewhere.
    """
    middle = 1 << (bits - 1)
    found = zeros[zeros != middle]
    if len(found):
        raise Misfit(
            f"the configuration says symmetric, so zero points are {middle}, and {len(found)} of "
            f"{zeros.numel()} are not: the first of them is {int(found[0])}"
        )


def _check_groups(groups: Tensor, count: int) -> None:
    lowest, highest = (int(x) for x in groups.aminmax())
    if lowest < 0 or highest >= count:
        outside = lowest if lowest < 0 else highest
        raise Misfit(f"a channel is of group {outside}, and there are {count} groups")


def _check_above_zero(scales: Tensor, what: str) -> None:
    found = scales.double()
    wrong = int((~(found.isfinite() & (found > 0))).sum())
    if wrong:
        raise Misfit(f"{wrong} of {found.numel()} {what} are not above zero")
