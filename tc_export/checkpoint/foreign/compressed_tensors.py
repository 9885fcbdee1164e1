# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, which llm-compressor writes: `quant_method: compressed-tensors`.

Three of its formats: `pack-quantized` (four or eight bits each along the input channels, in words,
shifted to start from 0), `int-quantized` (a byte each), `float-quantized` (fp8, E4M3). All matrices
must be quantised alike; which are not at all is seen from their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tc_export.checkpoint.foreign.packing import SCALES, Packing, Part, Parts, check_shape
from tc_export.checkpoint.foreign.unpacked import (
    Misfit,
    Unpacked,
    in_order,
    subtract_zeros,
    unpack_words,
)
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

_COMMON = {
    "weight_scale": Part("scales [N, G]", SCALES, axes=(0, 1, 2)),
    "weight_zero_point": Part(
        "zero points [N, G], or in words [N * bits / 32, G]",
        (DType.INT32, DType.INT8, DType.FP8),
        axes=(0, 1, 2),
        needed=False,
    ),
    "weight_g_idx": Part("the group of each channel [K]", (DType.INT32,), (1,), needed=False),
    "input_scale": Part("a scale of what enters", SCALES, (0, 1), needed=False, used=False),
    "input_zero_point": Part(
        "a zero point of what enters", tuple(DType), (0, 1), needed=False, used=False
    ),
    "output_scale": Part("a scale of what leaves", SCALES, (0, 1), needed=False, used=False),
    **{
        name: Part("a scale of the cache", SCALES, (0, 1, 2, 3), needed=False, used=False)
        for name in ("q_scale", "k_scale", "v_scale")
    },
}
TABLES = MappingProxyType(
    {
        "pack-quantized": {
            "weight_packed": Part("numbers in words [N, K * bits / 32]", (DType.INT32,)),
            "weight_shape": Part("N and K [2]", (DType.INT64, DType.INT32), axes=(1,)),
            **_COMMON,
        },
        "int-quantized": {"weight": Part("numbers [N, K]", (DType.INT8,)), **_COMMON},
        "float-quantized": {"weight": Part("numbers [N, K]", (DType.FP8,)), **_COMMON},
    }
)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class WeightArguments(_Strict):
    """How the weights of a group are quantised."""

    num_bits: Literal[4, 8]
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group"]
    group_size: int | None = None
    actorder: Literal["group", "weight", "dynamic", "static"] | bool | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.strategy == "group") != ((self.group_size or -1) > 0):
            raise ValueError(f"strategy {self.strategy} with group_size {self.group_size}")
        if self.num_bits == 8 and not self.symmetric:
            raise ValueError("eight bits with zero points: without them numbers take nine bits")
        return self


class Activations(_Strict):
    """How what enters a product is quantised."""

    num_bits: int
    type: Literal["int", "float"] = "int"
    dynamic: bool | str | None = False


class Group(_Strict):
    """Some layers of the model, and how they are quantised."""

    weights: WeightArguments
    input_activations: Activations | None = None
    output_activations: Activations | None = None


class CompressedTensors(Packing):
    """`quantization_config` of a checkpoint of compressed-tensors."""

    library: ClassVar[str] = "compressed-tensors"

    format: Literal["pack-quantized", "int-quantized", "float-quantized"]
    quantization_status: Literal["compressed"] = "compressed"
    config_groups: dict[str, Group] = Field(min_length=1)
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(group.weights != self.weights for group in self.config_groups.values()):
            raise ValueError("config_groups: weights of several kinds, expected one")
        if (self.sparsity_config or {}).get("format", "dense") != "dense":
            raise ValueError("sparsity_config: weights that are sparse too")
        if self.transform_config and self.transform_config.get("config_groups"):
            raise ValueError("transform_config: products that are rotated too")
        kind = (self.weights.type, self.weights.num_bits)
        fitting = {"int-quantized": ("int", 8), "float-quantized": ("float", 8)}
        if self.weights.type == "float" and self.format != "float-quantized":
            raise ValueError(f"{self.format} with weights of type float")
        if kind != fitting.get(self.format, kind):
            raise ValueError(f"{self.format} with weights of {kind[1]} bits, type {kind[0]}")
        return self

    @property
    def weights(self) -> WeightArguments:
        """How all its weights are quantised."""
        return next(iter(self.config_groups.values())).weights

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        return TABLES[self.format]

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        if self.weights.type == "float":
            return DType.FP8
        narrow = self.weights.num_bits == 4 and self.weights.symmetric
        return DType.INT4 if narrow else DType.INT8

    @property
    def channels_a_scale(self) -> int | None:
        """See `Packing.channels_a_scale`."""
        return self.weights.group_size if self.weights.strategy == "group" else None

    @property
    def has_zero_points(self) -> bool:
        """See `Packing.has_zero_points`."""
        return not self.weights.symmetric

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Packing.notes`."""
        found = []
        for group in self.config_groups.values():
            entering = group.input_activations
            if entering is not None:
                when = "as they come" if entering.dynamic else "by stored scales"
                found.append(
                    f"{self.library} rounds what enters a product to {entering.type}"
                    f"{entering.num_bits}, {when}; here it stays in floating point"
                )
        if self.kv_cache_scheme:
            found.append(f"{self.library} rounds the cache; here it stays in floating point")
        return tuple(dict.fromkeys(found))

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        if "weight" in parts:
            N, K = parts["weight"].shape
        else:
            check_shape(parts, "weight_shape", (2,))
            N, K = (int(x) for x in parts["weight_shape"].as_array())
            check_shape(parts, "weight_packed", (N, -(-K * self.weights.num_bits // 32)))
        G = self._groups(K)
        found = parts["weight_scale"].shape
        if found not in self._shapes(N, G):
            raise Misfit(f"weight_scale has the shape {found}, expected {(N, G)}")
        zeros = parts.get("weight_zero_point")
        if not self.weights.symmetric:
            if zeros is None:
                raise Misfit("weight_zero_point is missing, and the weights are not symmetric")
            check_shape(parts, "weight_zero_point", (-(-N * self.weights.num_bits // 32), G))
            if zeros.dtype is not DType.INT32:
                raise Misfit(f"weight_zero_point is {zeros.dtype}, expected int32")
        if "weight_g_idx" in parts:
            check_shape(parts, "weight_g_idx", (K,))
        return N, K

    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """See `Packing.unpack`."""
        import torch

        N, K = shape
        G = self._groups(K)
        groups = self._group_of_each(parts, K)
        scales = parts["weight_scale"].as_tensor()
        if scales.numel() == 1:
            scales = scales.reshape(1, 1).expand(N, 1)
        scales = scales.view(N, G).T
        if self.weights.symmetric and "weight_zero_point" in parts:
            _check_none(parts["weight_zero_point"].as_tensor())
        if self.dtype is DType.FP8:
            return Unpacked(parts["weight"].as_tensor().float().T, scales, groups)
        if "weight" in parts:
            return Unpacked(parts["weight"].as_tensor().T, scales, groups)
        bits = self.weights.num_bits
        words = parts["weight_packed"].as_tensor()
        numbers = unpack_words(words, bits, axis=1)[:, :K].T.to(torch.int16)
        if self.weights.symmetric:
            return Unpacked(numbers - (1 << (bits - 1)), scales, groups)
        # Both are shifted alike, so the shift goes with the zero points.
        zeros = unpack_words(parts["weight_zero_point"].as_tensor(), bits, axis=0)[:N].T
        return subtract_zeros(numbers, zeros, scales, groups)

    def _groups(self, channels: int) -> int:
        size = self.channels_a_scale or max(channels, 1)
        if channels % size:
            raise Misfit(f"{channels} channels are no multiple of groups of {size}")
        return channels // size

    def _shapes(self, N: int, G: int) -> tuple[Shape, ...]:
        """The shapes that scales may have."""
        return ((), (1,), (1, 1)) if self.weights.strategy == "tensor" else ((N, G),)

    def _group_of_each(self, parts: Parts, K: int) -> Tensor:
        """The group [K] of each channel. The library fills `weight_g_idx` with -1 where unused."""
        if "weight_g_idx" in parts:
            stated = parts["weight_g_idx"].as_tensor().long()
            if not bool((stated == -1).all()):
                return stated
        return in_order(K, self.channels_a_scale or K)


def _check_none(zeros: Tensor) -> None:
    found = zeros.float()
    if bool((found != 0).any()):
        raise Misfit(
            "the configuration says symmetric, so zero points are 0, and "
            f"{int((found != 0).sum())} of {found.numel()} are not"
        )
