# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, which llm-compressor writes: `quant_method: compressed-tensors`.

Four of its formats: `pack-quantized` (four or eight bits each along the input channels, in words,
shifted to start from 0), `int-quantized` (a byte each), `float-quantized` (fp8, E4M3) and
`nvfp4-pack-quantized` (two numbers to a byte). All matrices must be quantised alike; which are not
at all is seen from their tensors.

The global scale of NVFP4 divides: a number times its group's scale *over* the global one is the
weight. Graphs multiply, so it is stored as its inverse, rounded to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tc_export.checkpoint.foreign.packing import (
    ONE_NUMBER,
    SCALES,
    Packing,
    Part,
    Parts,
    check_blocks,
    check_one,
    check_shape,
    one_number,
)
from tc_export.checkpoint.foreign.unpacked import (
    Misfit,
    Unpacked,
    in_order,
    subtract_zeros,
    unpack_nvfp4,
    unpack_words,
)
from tc_export.checkpoint.four_bits import NVFP4_GROUP
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

_ASIDE = {
    "output_scale": Part("a scale of what leaves", SCALES, ONE_NUMBER, needed=False, used=False),
    **{
        name: Part("a scale of the cache", SCALES, (0, 1, 2, 3), needed=False, used=False)
        for name in ("q_scale", "k_scale", "v_scale")
    },
}
_INTEGER_OR_FP8 = {
    "weight_scale": Part("scales [N, G]", SCALES, axes=(0, 1, 2)),
    "weight_zero_point": Part(
        "zero points [N, G], or in words [N * bits / 32, G]",
        (DType.INT32, DType.INT8, DType.FP8),
        axes=(0, 1, 2),
        needed=False,
    ),
    "weight_g_idx": Part("the group of each channel [K]", (DType.INT32,), (1,), needed=False),
    "input_scale": Part("a scale of what enters", SCALES, ONE_NUMBER, needed=False, used=False),
    "input_zero_point": Part(
        "a zero point of what enters", tuple(DType), ONE_NUMBER, needed=False, used=False
    ),
    **_ASIDE,
}
_ENTERING = {"input_scale": Part("a scale of what enters", SCALES, ONE_NUMBER)}
TABLES = MappingProxyType(
    {
        "pack-quantized": {
            "weight_packed": Part("numbers in words [N, K * bits / 32]", (DType.INT32,)),
            "weight_shape": Part("N and K [2]", (DType.INT64, DType.INT32), axes=(1,)),
            **_INTEGER_OR_FP8,
        },
        "int-quantized": {"weight": Part("numbers [N, K]", (DType.INT8,)), **_INTEGER_OR_FP8},
        "float-quantized": {"weight": Part("numbers [N, K]", (DType.FP8,)), **_INTEGER_OR_FP8},
        "nvfp4-pack-quantized": {
            "weight_packed": Part("two numbers to a byte [N, K / 2]", (DType.UINT8,)),
            "weight_scale": Part("scales of groups [N, K / 16]", (DType.FP8,)),
            "weight_global_scale": Part(
                "what those scales are divided by", (DType.FLOAT32,), ONE_NUMBER
            ),
            "input_global_scale": Part(
                "a scale of the scales of what enters", SCALES, ONE_NUMBER, needed=False, used=False
            ),
            **_ASIDE,
        },
    }
)


_WHOLE = ("tensor", "channel", "group")
_KINDS = MappingProxyType(
    {
        "pack-quantized": {("int", bits, x) for bits in (4, 8) for x in _WHOLE},
        "int-quantized": {("int", 8, x) for x in _WHOLE},
        "float-quantized": {("float", 8, x) for x in ("tensor", "channel")},
        "nvfp4-pack-quantized": {("float", 4, "tensor_group")},
    }
)
"""Which numbers a format has: their type, bits and strategy."""


_KEPT_INPUTS = {DType.FP8: ("float", 8), DType.INT8: ("int", 8)}
"""What inputs are rounded to here, by the format of the weights."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class WeightArguments(_Strict):
    """How the weights of a group are quantised."""

    num_bits: Literal[4, 8]
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group", "tensor_group"]
    group_size: int | None = None
    actorder: Literal["group", "weight", "dynamic", "static"] | bool | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.strategy in ("group", "tensor_group")) != ((self.group_size or -1) > 0):
            raise ValueError(f"strategy {self.strategy} with group_size {self.group_size}")
        if self.type == "float" and not self.symmetric:
            raise ValueError("floating point with zero points")
        if self.num_bits == 8 and not self.symmetric:
            raise ValueError("eight bits with zero points: without them numbers take nine bits")
        return self


class Activations(_Strict):
    """How what enters a product is quantised."""

    num_bits: int
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    dynamic: bool | str | None = False

    @property
    def has_one_scale(self) -> bool:
        """True where a stored scale, and no zero point, serves all that enters."""
        return not self.dynamic and self.symmetric and self.strategy == "tensor"

    def __str__(self) -> str:
        return f"{self.type}{self.num_bits}"


class Group(_Strict):
    """Some layers of the model, and how they are quantised."""

    weights: WeightArguments
    input_activations: Activations | None = None
    output_activations: Activations | None = None


class CompressedTensors(Packing):
    """`quantization_config` of a checkpoint of compressed-tensors."""

    library: ClassVar[str] = "compressed-tensors"

    format: Literal["pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized"]
    quantization_status: Literal["compressed"] = "compressed"
    config_groups: dict[str, Group] = Field(min_length=1)
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(group.weights != self.weights for group in self.config_groups.values()):
            raise ValueError("config_groups: weights of several kinds, expected one")
        if len({group.input_activations for group in self.config_groups.values()}) > 1:
            raise ValueError("config_groups: what enters is rounded in several ways, expected one")
        if (self.sparsity_config or {}).get("format", "dense") != "dense":
            raise ValueError("sparsity_config: weights that are sparse too")
        if self.transform_config and self.transform_config.get("config_groups"):
            raise ValueError("transform_config: products that are rotated too")
        weights = self.weights
        if (weights.type, weights.num_bits, weights.strategy) not in _KINDS[self.format]:
            raise ValueError(
                f"{self.format} with weights of {weights.num_bits} bits, type {weights.type}, "
                f"strategy {weights.strategy}"
            )
        if self.format == "nvfp4-pack-quantized" and weights.group_size != NVFP4_GROUP:
            raise ValueError(f"groups of {weights.group_size} in nvfp4, expected {NVFP4_GROUP}")
        return self

    @property
    def weights(self) -> WeightArguments:
        """How all its weights are quantised."""
        return next(iter(self.config_groups.values())).weights

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        stored = self.inputs is not None and not self.calibrates
        return {**TABLES[self.format], **(_ENTERING if stored else {})}

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        if self.weights.type == "float":
            return DType.FP8 if self.weights.num_bits == 8 else DType.NVFP4
        narrow = self.weights.num_bits == 4 and self.weights.symmetric
        return DType.INT4 if narrow else DType.INT8

    @property
    def channels_a_scale(self) -> int | None:
        """See `Packing.channels_a_scale`."""
        size = self.weights.group_size or -1
        return size if size > 0 else None

    @property
    def has_zero_points(self) -> bool:
        """See `Packing.has_zero_points`."""
        return not self.weights.symmetric

    @property
    def entering(self) -> Activations | None:
        """How what enters the products is rounded."""
        return next(iter(self.config_groups.values())).input_activations

    @property
    def inputs(self) -> DType | None:
        """See `Packing.inputs`."""
        entering = self.entering
        if entering is None or self.channels_a_scale is not None:
            return None
        if (entering.type, entering.num_bits) != _KEPT_INPUTS.get(self.dtype):
            return None
        kept = self.dtype is DType.FP8 if entering.dynamic else entering.has_one_scale
        return self.dtype if kept else None

    @property
    def calibrates(self) -> bool:
        """See `Packing.calibrates`."""
        return self.inputs is not None and self.entering is not None and bool(self.entering.dynamic)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Packing.notes`."""
        found = []
        if self.calibrates:
            found.append(self._note_of_calibration)
        elif self.entering is not None and self.inputs is None:
            when = "as it comes" if self.entering.dynamic else "by stored scales"
            found.append(
                f"{self.library} rounds what enters a product to {self.entering}, {when}; here it "
                "stays in floating point"
            )
        if self.kv_cache_scheme:
            found.append(f"{self.library} rounds the cache; here it stays in floating point")
        return tuple(found)

    @property
    def kept(self) -> str:
        """See `Packing.kept`."""
        if self.dtype is not DType.NVFP4:
            return super().kept
        return (
            "kept bit for bit but for the scale of a whole matrix, which divides there and "
            "multiplies here: of its inverse, in float32, weights differ by less than 2e-7 of "
            "themselves"
        )

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        check_one(parts, "input_scale")
        if self.dtype is DType.NVFP4:
            check_one(parts, "weight_global_scale")
            return check_blocks(parts, "weight_packed")
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

        if self.dtype is DType.NVFP4:
            divisor = one_number(parts, "weight_global_scale")
            packed, scales = (parts[x].as_tensor() for x in ("weight_packed", "weight_scale"))
            return unpack_nvfp4(packed, scales, divisor.reciprocal())
        N, K = shape
        G = self._groups(K)
        groups = self._group_of_each(parts, K)
        scales = parts["weight_scale"].as_tensor()
        if scales.numel() == 1:
            scales = scales.reshape(1, 1).expand(N, 1)
        scales = scales.view(N, G).T
        if self.weights.symmetric:
            _check_none(parts, "weight_zero_point")
        if self.inputs is not None:
            _check_none(parts, "input_zero_point")
        entering = self._input_scale(parts)
        if "weight" in parts:
            return Unpacked(parts["weight"].as_tensor().T, scales, groups, entering)
        bits = self.weights.num_bits
        words = parts["weight_packed"].as_tensor()
        numbers = unpack_words(words, bits, axis=1)[:, :K].T.to(torch.int16)
        if self.weights.symmetric:
            numbers = numbers - (1 << (bits - 1))
            return Unpacked(numbers, scales, groups, entering)
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


def _check_none(parts: Parts, name: str) -> None:
    if name not in parts:
        return
    zeros = parts[name].as_tensor()
    found = int((zeros.float() != 0).sum())
    if found:
        raise Misfit(
            f"the configuration says symmetric, so zero points are 0, and in {name} {found} of "
            f"{zeros.numel()} are not"
        )
