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

from collections.abc import Sequence

from torch import Tensor

from tc_export.quantize.channels import Factors, Rounding, balanced, least_error, some_rows

POWERS = tuple(step / 20 for step in range(20))


def by_size_of_inputs(rounding: Rounding) -> Factors:
    """Factors with which all matrices of a pair together err least, rounded so."""

    def factors(matrices: Sequence[tuple[str, Tensor]], x_TK: Tensor) -> Tensor:
        size_K = x_TK.abs().mean(dim=0).clamp(min=1e-6)
        some_TK = some_rows(x_TK)
        tried = (balanced(size_K**power) for power in POWERS)
        return least_error(((s_K, some_TK / s_K) for s_K in tried), matrices, some_TK, rounding)

    return factors
