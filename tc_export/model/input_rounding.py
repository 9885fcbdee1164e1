# SPDX-License-Identifier: Apache-2.0
"""Products whose inputs are rounded to eight bits: what ONNX's QuantizeLinear and its inverse do.

Of x is left `number * scale`, where number is x / scale rounded to the nearest that the format
holds, a tie to the even one; what is larger than the format holds becomes its largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tc_export.dtypes import DType

RANGES = {DType.INT8: (-128.0, 127.0), DType.FP8: (-448.0, 448.0)}
"""The smallest and the largest number of each format that inputs are rounded to."""


@dataclass(frozen=True)
class InputRounding:
    """The format that inputs are rounded to, and what one of its units stands for."""

    dtype: DType
    scale: float

    def __call__(self, x: Tensor, dither: torch.Generator | None = None) -> Tensor:
        """x rounded, in the format that it came in.

        The quotient is taken in float32 (float64 in float64), as the operator does it. With
        `dither` numbers are moved at random before, by up to half a unit: a number is rounded up
        as often as it is near to the next one.
        """
        wide = x if x.dtype == torch.float64 else x.to(torch.float32)
        numbers = wide / self.scale
        if dither is not None:
            moved = torch.rand(numbers.shape, generator=dither, dtype=numbers.dtype) - 0.5
            numbers += moved * self._unit(numbers)
        numbers = numbers.clamp_(*RANGES[self.dtype])
        if self.dtype is DType.FP8:
            rounded = numbers.to(self.dtype.torch).to(wide.dtype)
        else:
            rounded = numbers.round_()
        return (rounded * self.scale).to(x.dtype)

    def _unit(self, numbers: Tensor) -> Tensor | float:
        """The distance of neighbours in the format, at each number."""
        if self.dtype is not DType.FP8:
            return 1.0
        _, exponent = torch.frexp(numbers.abs().clamp(min=2.0**-6))
        return torch.ldexp(torch.ones_like(numbers), exponent - 4)


def round_inputs(module: nn.Module, roundings: Mapping[str, InputRounding]) -> None:
    """Let the linear layers of these names round what enters them.

    Where such a layer has an attribute `dither`, a generator, it is rounded by that.
    """
    for name, rounding in roundings.items():

        def rounded(
            module: nn.Module, given: tuple[Tensor, ...], by: InputRounding = rounding
        ) -> tuple[Tensor, ...]:
            return (by(given[0], getattr(module, "dither", None)), *given[1:])

        module.get_submodule(name).register_forward_pre_hook(rounded)
