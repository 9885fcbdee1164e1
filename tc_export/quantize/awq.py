# SPDX-License-Identifier: Apache-2.0
"""AWQ: channels that carry more are made larger before rounding, and what feeds them smaller.

What a matrix errs is what its rounding errs times what enters it. So the columns of channels that
are large on real inputs are multiplied by s before rounding, which makes their error s times
smaller. s is the mean size of a channel to a power from 0 to 1, by the least square error of the
products on the calibration's inputs. (Lin et al., "AWQ: Activation-aware Weight Quantization",
arXiv 2306.00978.)

Axes: T tokens, N output channels, K input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tc_export.quantize.channels import Factors
from tc_export.quantize.grouped import Grouped

POWERS = tuple(step / 20 for step in range(20))
ROWS = 512
"""Tokens that a power is judged by."""

Rounding = Callable[[str, Tensor], Grouped | None]
"""Rounds a weight [N, K] of a name; None where it stays as it is."""


def by_size_of_inputs(rounding: Rounding) -> Factors:
    """Factors with which all matrices of a pair together err least, rounded so."""

    def factors(matrices: Sequence[tuple[str, Tensor]], x_TK: Tensor) -> Tensor:
        size_K = x_TK.abs().mean(dim=0).clamp(min=1e-6)
        places = torch.linspace(0, len(x_TK) - 1, min(ROWS, len(x_TK))).round().long()
        some_TK = x_TK[places]
        truths = [some_TK @ weight.T for _, weight in matrices]
        best, least = torch.ones_like(size_K), float("inf")
        for power in POWERS:
            s_K = size_K**power
            s_K = s_K / (s_K.max() * s_K.min()).sqrt()
            error = 0.0
            for (name, weight), truth in zip(matrices, truths, strict=True):
                rounded = rounding(name, weight * s_K)
                if rounded is not None:
                    found = (some_TK / s_K) @ rounded.widened().T
                    error += float((found - truth).square().mean() / truth.square().mean())
            if error < least:
                best, least = s_K, error
        return best

    return factors
