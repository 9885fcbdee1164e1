# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's ModelOpt: `hf_quant_config.json`, or `quant_method: modelopt` in config.json.

Its FP8 (E4M3, a float32 scale for all of a matrix or each row) and NVFP4 (two numbers of E2M1 to a
byte along the input channels, an fp8 scale for each 16, one float32 scale for all). Both come with
scales of what enters a product, measured when the model was quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from tc_export.checkpoint.foreign.packing import Packing, Part, Parts, check_shape
from tc_export.checkpoint.foreign.unpacked import Misfit, Unpacked, in_order
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import Shape

BLOCK = 16
"""Input channels that share a scale in NVFP4."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of four bits without the highest, which is the sign."""

_SCALAR = (0, 1)
_CACHE = {
    name: Part("a scale of the cache", (DType.FLOAT32,), _SCALAR, needed=False, used=False)
    for name in ("k_scale", "v_scale")
}
_ENTERING = Part("a scale of what enters", (DType.FLOAT32,), _SCALAR, needed=False, used=False)
TABLES = MappingProxyType(
    {
        DType.FP8: {
            "weight": Part("numbers [N, K]", (DType.FP8,)),
            "weight_scale": Part("a scale, or scales [N] or [N, 1]", (DType.FLOAT32,), (0, 1, 2)),
            "input_scale": _ENTERING,
            **_CACHE,
        },
        DType.NVFP4: {
            "weight": Part("two numbers to a byte [N, K / 2]", (DType.UINT8,)),
            "weight_scale": Part("scales of blocks [N, K / 16]", (DType.FP8,)),
            "weight_scale_2": Part("a scale of those scales", (DType.FLOAT32,), _SCALAR),
            "input_scale": _ENTERING,
            **_CACHE,
        },
    }
)
_DTYPES = {"FP8": DType.FP8, "FP8_PER_CHANNEL_PER_TOKEN": DType.FP8, "NVFP4": DType.NVFP4}


class ModelOpt(Packing):
    """What `hf_quant_config.json` has under `quantization`."""

    library: ClassVar[str] = "ModelOpt"

    quant_algo: Literal["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4"]
    group_size: int | None = None
    kv_cache_quant_algo: str | None = None
    kv_cache_scheme: dict[str, Any] | str | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.quant_algo == "NVFP4" and self.group_size not in (None, BLOCK):
            raise ValueError(f"NVFP4 with blocks of {self.group_size}, expected {BLOCK}")
        return self

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        return TABLES[self.dtype]

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        return _DTYPES[self.quant_algo]

    @property
    def channels_a_scale(self) -> int | None:
        """See `Packing.channels_a_scale`."""
        return BLOCK if self.dtype is DType.NVFP4 else None

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Packing.notes`."""
        found = [f"{self.library} rounds what enters a product to {self.dtype} too"]
        if self.kv_cache_quant_algo or self.kv_cache_scheme:
            found.append(f"{self.library} rounds the cache too")
        return tuple(found)

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        rows, columns = parts["weight"].shape
        if self.dtype is DType.NVFP4:
            if 2 * columns % BLOCK:
                raise Misfit(f"{2 * columns} channels are no multiple of blocks of {BLOCK}")
            check_shape(parts, "weight_scale", (rows, 2 * columns // BLOCK))
            _check_one(parts, "weight_scale_2")
            return rows, 2 * columns
        found = parts["weight_scale"].shape
        if found not in ((), (1,), (rows,), (rows, 1)):
            raise Misfit(f"weight_scale has the shape {found}, expected one, or {rows}")
        return rows, columns

    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """See `Packing.unpack`. Scales of NVFP4 come multiplied by the one of all, in float64."""
        import torch

        N, K = shape
        groups = in_order(K, self.channels_a_scale or K)
        stored, scales = parts["weight"].as_tensor(), parts["weight_scale"].as_tensor()
        if self.dtype is DType.FP8:
            return Unpacked(stored.float().T, scales.reshape(1, -1).expand(1, N), groups)
        fours = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1).int()
        signs = 1 - 2 * (fours >> 3)
        numbers = torch.tensor(E2M1)[fours & 7] * signs
        of_all = parts["weight_scale_2"].as_tensor().double()
        return Unpacked(numbers.T, (scales.double() * of_all).T, groups)


def _check_one(parts: Parts, name: str) -> None:
    if parts[name].shape not in ((), (1,)):
        raise Misfit(f"{name} has the shape {parts[name].shape}, expected one number")
