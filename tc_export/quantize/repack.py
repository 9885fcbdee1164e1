# SPDX-License-Identifier: Apache-2.0
"""Weights that another library has quantised, into our stored form: no weight is rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.quantize.calibration import Calibration
from tc_export.quantize.grouped import Grouped
from tc_export.quantize.layer import Found, LayerWeight, Quantizer, input_scale_of


class Repacker(Quantizer):
    """Stores numbers and scales as they are; a scale of many channels is stored for each group.

    Where the library has no scales of what enters the products, and engines need them, calibration
    finds these.
    """

    def __init__(self, calibration: Calibration | None) -> None:
        self._calibration = calibration

    def skip(self, layer: int | None) -> None:
        """See `Quantizer.skip`."""
        if self._calibration is not None and layer is not None:
            self._calibration.inputs(layer)

    def quantize(self, layer: int | None, weights: Sequence[LayerWeight]) -> Found:
        """See `Quantizer.quantize`."""
        inputs: Mapping[str, Tensor] = {}
        if self._calibration is not None and layer is not None:
            inputs = self._calibration.inputs(layer)
        return {weight.location.name: _repacked(weight, inputs) for weight in weights}


def _repacked(weight: LayerWeight, inputs: Mapping[str, Tensor]) -> Tensor | Grouped:
    """A weight as it is stored; where inputs [T, K] are given, the scale for these is of them."""
    packed = weight.location
    if not isinstance(packed, PackedWeight):
        return packed.as_tensor()
    # The recipe has a rule for what is packed, and for nothing else.
    assert weight.rule is not None
    found = packed.in_groups(weight.rule.group_size)
    input_scale = input_scale_of(weight, inputs) if inputs else found.input_scale
    return Grouped(found.numbers, found.scales, packed.dtype, input_scale, found.global_scale)
