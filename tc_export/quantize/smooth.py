# SPDX-License-Identifier: Apache-2.0
"""Products of eight bits: the range of the inputs is shared with the weights, then both rounded.

Few channels of what enters a matrix are far larger than the rest, and all of it shares one scale,
so that the rest would be rounded to nothing. Weights have no such channels, and a scale for each
output channel. So each channel is divided by s, and the matrix's column multiplied, with
s = max |x| ** a / max |w| ** (1 - a), where a is searched, by the least square error of the
products. (Xiao et al., "SmoothQuant", arXiv 2211.10438.)

Axes: T tokens, N output channels, K input channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tc_export.dtypes import DType
from tc_export.model.input_rounding import RANGES, InputRounding
from tc_export.quantize.channels import Factors, Rounding, balanced, least_error, some_rows

SHARES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the inputs' range that goes over to the weights, as the power a; 0 leaves all as it is."""

CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the largest input that the largest number may stand for: what is beyond is cut off."""


def by_range(rounding: Rounding, dtype: DType) -> Factors:
    """Factors with which products of rounded inputs and rounded weights err least."""

    def factors(matrices: Sequence[tuple[str, Tensor]], x_TK: Tensor) -> Tensor:
        x_K = x_TK.abs().amax(dim=0).clamp(min=1e-5)
        w_K = torch.stack([w.abs().amax(dim=0) for _, w in matrices]).amax(dim=0).clamp(min=1e-5)
        some_TK = some_rows(x_TK)

        def candidates() -> Iterator[tuple[Tensor, Tensor]]:
            for share in SHARES:
                s_K = balanced(x_K**share / w_K ** (1 - share) if share else torch.ones_like(x_K))
                rounded = InputRounding(dtype, float((x_K / s_K).max()) / RANGES[dtype][1])
                yield s_K, rounded(some_TK / s_K)

        return least_error(candidates(), matrices, some_TK, rounding)

    return factors


def scale_of_inputs(x_TK: Tensor, dtype: DType) -> Tensor:
    """The scale [1] in float32 by which inputs like these are rounded with the least square error.

    Inputs that are all zero have the smallest scale there is.
    """
    largest = max(float(x_TK.abs().max()), torch.finfo(torch.float32).tiny * RANGES[dtype][1])
    scales = [largest * cut / RANGES[dtype][1] for cut in CUTS]
    errors = [float((InputRounding(dtype, s)(x_TK) - x_TK).square().mean()) for s in scales]
    return torch.tensor([scales[errors.index(min(errors))]])
