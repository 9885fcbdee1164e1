# SPDX-License-Identifier: Apache-2.0
"""The weights of one decoder layer, or all that are outside of layers, quantised by their rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.quantize.awq import by_size_of_inputs
from tc_export.quantize.calibration import Calibration
from tc_export.quantize.channels import equalise
from tc_export.quantize.gptq import inverse_factor, round_with_inputs
from tc_export.quantize.grouped import Grouped, round_in_groups
from tc_export.quantize.smooth import by_range, scale_of_inputs
from tc_export.recipes import WeightRule

_SCALES = {DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}

Found = dict[str, Tensor | Grouped]
"""By the name on disk."""


@dataclass(frozen=True)
class LayerWeight:
    """A weight by its name in its layer, where it lies, and its rule, where it has one."""

    name: str
    location: TensorLocation | PackedWeight
    rule: WeightRule | None

    @property
    def module(self) -> str:
        """The linear layer that it is the matrix of."""
        return self.name.removesuffix(".weight")

    @property
    def scales(self) -> torch.dtype:
        """The format of its scales: its own, or float32."""
        return _SCALES.get(self.location.dtype, torch.float32)

    def read(self) -> Tensor:
        """The weight as it is stored.

        Raises:
            CheckpointError: it is to be quantised, and has numbers that are not finite.
        """
        weight = self.location.as_tensor()
        if self.rule is not None and not weight.isfinite().all():
            raise CheckpointError(
                f"{self.location.file}: {self.location.name} has weights that are NaN or infinite",
                hint="the checkpoint was damaged, or its training diverged: use an earlier one",
            )
        return weight

    def rounded(self, weight: Tensor, *, search: bool | None = None) -> Grouped:
        """A weight [N, K] in its place, rounded by its rule.

        Raises:
            CheckpointError: a scale leaves its format.
        """
        assert self.rule is not None
        chosen = self.rule.search if search is None else search
        try:
            return round_in_groups(
                weight, self.rule.dtype, self.rule.group_size, self.scales, search=chosen
            )
        except OverflowError as error:
            raise self._too_large(error) from error

    def rounded_with(self, factor_KK: Tensor) -> Grouped:
        """The weight rounded by its rule for the inputs that `inverse_factor` is of.

        Raises:
            CheckpointError: a scale leaves its format.
        """
        assert self.rule is not None
        rule = self.rule
        try:
            return round_with_inputs(
                self.read(), factor_KK, rule.dtype, rule.group_size, self.scales, search=rule.search
            )
        except OverflowError as error:
            raise self._too_large(error) from error

    def _too_large(self, error: OverflowError) -> CheckpointError:
        """What is said of a weight whose scale leaves its format."""
        return CheckpointError(
            f"{self.location.file}: {self.location.name} has a weight of {error}, whose scale "
            f"{str(self.scales).removeprefix('torch.')} does not hold",
            hint="let the recipe keep this weight, or look where such a number comes from",
        )


class Quantizer:
    """Rounds each weight by itself."""

    def quantize(self, layer: int | None, weights: Sequence[LayerWeight]) -> Found:
        """Weights of a layer, or of none, by their rules; layers come in order.

        Raises:
            CheckpointError: a weight cannot be stored so.
        """
        found: Found = {}
        for weight in weights:
            values = weight.read()
            found[weight.location.name] = weight.rounded(values) if weight.rule else values
        return found

    def skip(self, layer: int | None) -> None:
        """Pass over a layer that is done."""


class CalibratedQuantizer(Quantizer):
    """Looks at what enters the matrices of a decoder layer."""

    def __init__(
        self, method: Literal["round", "awq", "gptq", "smooth"], calibration: Calibration
    ) -> None:
        self._method = method
        self._calibration = calibration

    def skip(self, layer: int | None) -> None:
        """See `Quantizer.skip`."""
        if layer is not None:
            self._calibration.inputs(layer)

    def quantize(self, layer: int | None, weights: Sequence[LayerWeight]) -> Found:
        """See `Quantizer.quantize`."""
        if layer is None:
            return super().quantize(layer, weights)
        inputs = self._calibration.inputs(layer)
        if self._method == "gptq":
            found = dict(_with_inputs(weights, inputs))
        elif self._method == "round":
            found = super().quantize(layer, weights)
        else:
            found, inputs = self._equalised(weights, inputs)
        for weight in weights:
            rounded = found[weight.location.name]
            if isinstance(rounded, Grouped) and weight.rule and weight.rule.inputs:
                scale = scale_of_inputs(inputs[weight.module], DType(weight.rule.inputs))
                found[weight.location.name] = replace(rounded, input_scale=scale)
        return found

    def _equalised(
        self, weights: Sequence[LayerWeight], inputs: dict[str, Tensor]
    ) -> tuple[Found, dict[str, Tensor]]:
        """The layer rounded after its channels were scaled, and what enters its matrices then."""
        by_name = {weight.name: weight for weight in weights}

        def rounding(name: str, values: Tensor) -> Grouped | None:
            weight = by_name[name]
            return weight.rounded(values, search=False) if weight.rule else None

        formats = {DType(x.rule.inputs) for x in weights if x.rule and x.rule.inputs}
        factors = (
            by_range(rounding, *formats)
            if self._method == "smooth"
            else by_size_of_inputs(rounding)
        )
        changed = equalise(
            {x.name: x.read() for x in weights},
            inputs,
            lambda name: by_name[name].rule is not None,
            factors,
        )
        found: Found = {
            x.location.name: x.rounded(changed.weights[x.name])
            if x.rule
            else changed.weights[x.name].to(x.location.dtype.torch)
            for x in weights
        }
        return found, changed.inputs


def _with_inputs(
    weights: Sequence[LayerWeight], inputs: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor | Grouped]]:
    """Weights rounded by GPTQ, those that share their inputs one after the other."""
    sharing: dict[int, list[LayerWeight]] = defaultdict(list)
    for weight in weights:
        if weight.rule is None:
            yield weight.location.name, weight.read()
        else:
            sharing[id(inputs[weight.module])].append(weight)
    for of in sharing.values():
        factor_KK = inverse_factor(inputs[of[0].module])
        for weight in of:
            yield weight.location.name, weight.rounded_with(factor_KK)
