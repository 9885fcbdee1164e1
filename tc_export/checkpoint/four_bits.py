# SPDX-License-Identifier: Apache-2.0
"""Numbers of four bits, whole ones and NVFP4's: two to a byte, the first in the low half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tc_export.dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0 to 7 of NVFP4 stand for; 8 to 15 are the same below zero."""

NVFP4_NUMBERS = (*E2M1, *(-x for x in E2M1))
"""What each code stands for."""

NVFP4_GROUP = 16
"""Numbers of NVFP4 that share a scale: the format has no other."""


def pack_int4(numbers: Tensor) -> Tensor:
    """Bytes of whole numbers from -8 to 7, two to a byte; there must be an even count."""
    import torch

    low, high = numbers.reshape(-1, 2).to(torch.int16).unbind(dim=1)
    return ((low & 15) | ((high & 15) << 4)).to(torch.uint8)


def unpack(packed: Tensor, dtype: DType) -> Tensor:
    """The numbers of four bits each in bytes: whole ones in eight bits, E2M1 in float32."""
    import torch

    codes = codes_in(packed.flatten())
    if dtype is DType.NVFP4:
        return number_of(codes)
    numbers = codes.to(torch.int8)
    return torch.where(numbers > 7, numbers - 16, numbers)


def codes_in(packed: Tensor) -> Tensor:
    """The codes of four bits each in bytes [..., B]: [..., 2 * B]."""
    import torch

    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def number_of(codes: Tensor) -> Tensor:
    """What codes of NVFP4 stand for, in float32."""
    import torch

    return torch.tensor(NVFP4_NUMBERS)[codes.to(torch.int32)]
