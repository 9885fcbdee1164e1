# SPDX-License-Identifier: Apache-2.0
"""What every library's tensors come to: numbers, scales, and the group of each channel.

Axes: N output channels, K input channels, G groups, W words of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    `numbers` [K, N] are whole or floating point; `scales` [G, N] are as they lie on the disk;
    `groups` [K] says which row of them a channel has.
    """

    numbers: Tensor
    scales: Tensor
    groups: Tensor

    def __post_init__(self) -> None:
        """See that every channel has a scale, and that scales and numbers can be ones."""
        _check_groups(self.groups, len(self.scales))
        found = self.scales.double()
        wrong = ~(found.isfinite() & (found > 0))
        if wrong.any():
            raise Misfit(f"{int(wrong.sum())} of {wrong.numel()} scales are not above zero")
        if self.numbers.is_floating_point() and not bool(self.numbers.isfinite().all()):
            raise Misfit("some numbers are NaN")

    def widened(self) -> Tensor:
        """The weight [N, K] in float32: each product is rounded once."""
        return (self.numbers.double() * self.scales.double()[self.groups]).float().T.contiguous()

    def in_groups(self, size: int, dtype: DType) -> tuple[Tensor, Tensor]:
        """Whole numbers [K, N] in eight bits each, and scales [K / size, N]: the same weight.

        Raises:
            Misfit: a number is none of the format, or channels that would share a scale do not.
        """
        import torch

        lowest, highest = RANGES[dtype]
        least, most = (int(x) for x in self.numbers.aminmax())
        if least < lowest or most > highest:
            raise Misfit(
                f"numbers are from {least} to {most} without their zero points, and {dtype} holds "
                f"{lowest} to {highest}"
            )
        neighbours = self.groups.view(-1, size)
        if not bool((neighbours == neighbours[:, :1]).all()):
            raise Misfit(
                f"neighbouring channels are of different groups (an order of activations, desc_act "
                f"or actorder): {size} of them share a scale here"
            )
        scales = self.scales[neighbours[:, 0]]
        return self.numbers.to(torch.int8).contiguous(), scales.contiguous()


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
