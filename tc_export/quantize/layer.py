# SPDX-License-Identifier: Apache-2.0
"""The weights of one decoder layer, or all that are outside of layers, quantised by their rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.quantize.awq import by_size_of_inputs
from tc_export.quantize.calibration import Calibration
from tc_export.quantize.channels import Factors, equalise
from tc_export.quantize.gptq import inverse_factor, round_with_inputs
from tc_export.quantize.grouped import Grouped, round_in_groups
from tc_export.quantize.smooth import by_range, scale_of_inputs
from tc_export.recipes import Recipe, WeightRule

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

    def rounded(
        self, weight: Tensor, *, search: bool | None = None, importance: Tensor | None = None
    ) -> Grouped:
        """A weight [N, K] in its place, rounded by its rule.

        Args:
            weight: what is rounded.
            search: as the rule says, if it is None.
            importance: of each channel [K] in a search.

        Raises:
            CheckpointError: a scale leaves its format.
        """
        assert self.rule is not None
        rule = self.rule
        try:
            return round_in_groups(
                weight,
                rule.dtype,
                rule.group_size,
                self.scales,
                search=rule.search if search is None else search,
                importance=importance,
            )
        except OverflowError as error:
            raise self._too_large(error) from error

    def rounded_with(self, weight: Tensor, factor_KK: Tensor) -> Grouped:
        """A weight [N, K] in its place, rounded by its rule for the inputs of an `inverse_factor`.

        Raises:
            CheckpointError: a scale leaves its format.
        """
        assert self.rule is not None
        rule = self.rule
        try:
            return round_with_inputs(
                weight, factor_KK, rule.dtype, rule.group_size, self.scales, search=rule.search
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

    def __init__(self, recipe: Recipe, calibration: Calibration) -> None:
        self._recipe = recipe
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
        values = {weight.name: weight.read() for weight in weights}
        if self._recipe.scales_channels:
            changed = equalise(values, inputs, *self._how_to_scale(weights))
            values, inputs = changed.weights, changed.inputs
        found: Found = {
            x.location.name: values[x.name].to(x.location.dtype.torch)
            for x in weights
            if not x.rule
        }
        of_rules = [weight for weight in weights if weight.rule]
        rounded = _one_after_the_other if self._recipe.makes_good else _each_by_itself
        for weight, grouped in rounded(of_rules, values, inputs):
            scale = input_scale_of(weight, inputs)
            found[weight.location.name] = replace(grouped, input_scale=scale)
        return found

    def _how_to_scale(
        self, weights: Sequence[LayerWeight]
    ) -> tuple[Callable[[str], bool], Factors]:
        """Whether a weight of a name is going to be rounded, and the factors of its channels."""
        by_name = {weight.name: weight for weight in weights}

        def is_rounded(name: str) -> bool:
            return by_name[name].rule is not None

        def rounding(name: str, values: Tensor) -> Grouped | None:
            return by_name[name].rounded(values, search=False) if is_rounded(name) else None

        if self._recipe.method != "smooth":
            return is_rounded, by_size_of_inputs(rounding)
        (dtype,) = {rule.inputs for rule in self._recipe.weights if rule.inputs}
        return is_rounded, by_range(rounding, DType(dtype))


Rounded = Iterator[tuple[LayerWeight, Grouped]]


def _each_by_itself(
    weights: Sequence[LayerWeight], values: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Rounded:
    """Weights rounded to the nearest, their scales searched by what their products err."""
    for weight in weights:
        importance_K = torch.linalg.vector_norm(inputs[weight.module], dim=0) ** 2
        yield weight, weight.rounded(values[weight.name], importance=importance_K)


def _one_after_the_other(
    weights: Sequence[LayerWeight], values: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Rounded:
    """Weights rounded by GPTQ, those that share their inputs one after the other."""
    sharing: dict[int, list[LayerWeight]] = defaultdict(list)
    for weight in weights:
        sharing[id(inputs[weight.module])].append(weight)
    for of in sharing.values():
        factor_KK = inverse_factor(inputs[of[0].module])
        for weight in of:
            yield weight, weight.rounded_with(values[weight.name], factor_KK)


def input_scale_of(weight: LayerWeight, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The scale that what enters a product is rounded by; None where it is not."""
    assert weight.rule is not None
    if weight.rule.inputs is None:
        return None
    return scale_of_inputs(inputs[weight.module], DType(weight.rule.inputs))
