# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's ModelOpt: `hf_quant_config.json`, or `quant_method: modelopt` in config.json.

Its FP8 (E4M3, a float32 scale for all of a matrix or each row) and NVFP4 (two numbers of E2M1 to a
byte along the input channels, an fp8 scale for each 16, one float32 scale for all). FP8 comes with
one scale of what enters each product, but for `FP8_PER_CHANNEL_PER_TOKEN`, where each token has its
own; NVFP4's inputs are rounded in blocks, and only its engines do that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from tc_export.checkpoint.foreign.packing import (
    ONE_NUMBER,
    Packing,
    Part,
    Parts,
    check_blocks,
    check_one,
    one_number,
)
from tc_export.checkpoint.foreign.unpacked import Misfit, Unpacked, in_order, unpack_nvfp4
from tc_export.checkpoint.four_bits import NVFP4_GROUP
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import Shape

_FLOAT = (DType.FLOAT32,)
_CACHE = {
    name: Part("a scale of the cache", _FLOAT, ONE_NUMBER, needed=False, used=False)
    for name in ("k_scale", "v_scale")
}
_FP8 = {
    "weight": Part("numbers [N, K]", (DType.FP8,)),
    "weight_scale": Part("a scale, or scales [N] or [N, 1]", _FLOAT, (0, 1, 2)),
    **_CACHE,
}
_NVFP4 = {
    "weight": Part("two numbers to a byte [N, K / 2]", (DType.UINT8,)),
    "weight_scale": Part("scales of blocks [N, K / 16]", (DType.FP8,)),
    "weight_scale_2": Part("a scale of those scales", _FLOAT, ONE_NUMBER),
    "input_scale": Part(
        "a scale of the scales of what enters", _FLOAT, ONE_NUMBER, needed=False, used=False
    ),
    **_CACHE,
}
TABLES = MappingProxyType(
    {
        "FP8": {"input_scale": Part("a scale of what enters", _FLOAT, ONE_NUMBER), **_FP8},
        "FP8_PER_CHANNEL_PER_TOKEN": _FP8,
        "NVFP4": _NVFP4,
        "W4A16_NVFP4": _NVFP4,
    }
)


class ModelOpt(Packing):
    """What `hf_quant_config.json` has under `quantization`."""

    library: ClassVar[str] = "ModelOpt"

    quant_algo: Literal["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4"]
    group_size: int | None = None
    kv_cache_quant_algo: str | None = None
    kv_cache_scheme: dict[str, Any] | str | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.dtype is DType.NVFP4 and self.group_size not in (None, NVFP4_GROUP):
            raise ValueError(f"NVFP4 with blocks of {self.group_size}, expected {NVFP4_GROUP}")
        return self

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        return TABLES[self.quant_algo]

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        return DType.NVFP4 if "NVFP4" in self.quant_algo else DType.FP8

    @property
    def channels_a_scale(self) -> int | None:
        """See `Packing.channels_a_scale`."""
        return NVFP4_GROUP if self.dtype is DType.NVFP4 else None

    @property
    def inputs(self) -> DType | None:
        """See `Packing.inputs`."""
        return DType.FP8 if self.dtype is DType.FP8 else None

    @property
    def calibrates(self) -> bool:
        """See `Packing.calibrates`."""
        return self.quant_algo == "FP8_PER_CHANNEL_PER_TOKEN"

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Packing.notes`."""
        found = []
        if self.quant_algo == "NVFP4":
            found.append(
                f"{self.library} rounds what enters a product to nvfp4, as it comes; here it stays "
                "in floating point"
            )
        if self.calibrates:
            found.append(self._note_of_calibration)
        if self.kv_cache_quant_algo or self.kv_cache_scheme:
            found.append(f"{self.library} rounds the cache; here it stays in floating point")
        return tuple(found)

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        check_one(parts, "input_scale")
        if self.dtype is DType.NVFP4:
            check_one(parts, "weight_scale_2")
            return check_blocks(parts, "weight")
        N, K = parts["weight"].shape
        found = parts["weight_scale"].shape
        if found not in ((), (1,), (N,), (N, 1)):
            raise Misfit(f"weight_scale has the shape {found}, expected one number, or {N}")
        return N, K

    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """See `Packing.unpack`."""
        N, K = shape
        stored, scales = parts["weight"].as_tensor(), parts["weight_scale"].as_tensor()
        if self.dtype is DType.NVFP4:
            return unpack_nvfp4(stored, scales, one_number(parts, "weight_scale_2"))
        scales = scales.reshape(1, -1).expand(1, N)
        return Unpacked(stored.T, scales, in_order(K, K), self._input_scale(parts))
