# SPDX-License-Identifier: Apache-2.0
"""Weights that another library has quantised, into our stored form: nothing is rounded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.quantize.grouped import Grouped
from tc_export.quantize.layer import Found, LayerWeight, Quantizer


class Repacker(Quantizer):
    """Stores numbers and scales as they are; a scale of many channels is stored for each group."""

    def quantize(self, layer: int | None, weights: Sequence[LayerWeight]) -> Found:
        """See `Quantizer.quantize`."""
        return {weight.location.name: _repacked(weight) for weight in weights}


def _repacked(weight: LayerWeight) -> Tensor | Grouped:
    packed = weight.location
    if not isinstance(packed, PackedWeight):
        return packed.as_tensor()
    # The recipe has a rule for what is packed, with a group, and for nothing else.
    assert weight.rule is not None
    assert weight.rule.group_size is not None
    numbers, scales = packed.in_groups(weight.rule.group_size)
    return Grouped(numbers, scales, packed.dtype)
