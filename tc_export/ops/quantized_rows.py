# SPDX-License-Identifier: Apache-2.0
"""Rows of keys and values in int8, with a scale for each row of each key/value head.

The scale of a row is its largest absolute number over 127; a number becomes the nearest whole
multiple of it, a tie the even one. A row of zeros has the scale 0. A row with a number that is not
finite has a scale that is not, and stays visible as such.

Axes: D head size; all others are those of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tc_export.contracts.ops import LARGEST_CODE


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [..., D] in int8, and the scales [...] of rows [..., D].

    Scales are computed and kept in float32; of float64, in float64.
    """
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    scale = wide.abs().amax(dim=-1) / LARGEST_CODE
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    # Beside a scale that lost its digits (a subnormal number) a quotient may be larger.
    codes = (wide / divisor[..., None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    return codes.nan_to_num(0.0).to(torch.int8), scale


def dequantize_rows(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers [..., D] that codes stand for, in `dtype`: each is rounded once."""
    return (codes.to(scale.dtype) * scale[..., None]).to(dtype)
