# SPDX-License-Identifier: Apache-2.0
"""What a custom op promises: its inputs, outputs and attributes, as data.

The PyTorch op, the ONNX schema, the model-local function, the kernels' bindings and the tests all
read the same contract, so that none can drift from the others. The bindings are C++ and read it as
`plugins/generated/tc_contract.h`, which `scripts/generate_contract.py` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tc_export.dtypes import DType

DOMAIN = "tc"
OPSET_VERSION = 1
PLUGIN_NAMESPACE = "tc"
PLUGIN_VERSION = "1"

FLOAT_TYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)

LARGEST_CODE = 127
"""What the largest number of a row becomes in int8: the row's scale is that number over this."""

PADDING = -1
"""The n, the T and the slot of a token that is padding."""


@dataclass(frozen=True, kw_only=True)
class TensorContract:
    """One input or output.

    `axes` names each dimension; the same letter is the same length everywhere in the op.
    `dtype` is a `DType`, or `T` for the op's floating-point type (one of `FLOAT_TYPES`).
    `aliases` names the input whose buffer an output may be.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    meaning: str
    aliases: str | None = None


@dataclass(frozen=True, kw_only=True)
class OpContract:
    """A custom op of domain `tc`.

    `attributes` maps each float attribute to its default, or to None where it must be given.
    `positive` names those that must be above 0.
    """

    name: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    attributes: dict[str, float | None]
    summary: str
    positive: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(tensor.name for tensor in self.inputs)

    def input_like(self, output: TensorContract) -> TensorContract:
        """The input whose shape and type an output has: the one that it aliases, else the first.

        Raises:
            ValueError: there is none, so that a binding could not infer the output's shape.
        """
        for tensor in self.inputs:
            is_like = (tensor.axes, tensor.dtype) == (output.axes, output.dtype)
            if is_like and output.aliases in (None, tensor.name):
                return tensor
        raise ValueError(f"{self.name}: no input has the axes and the type of {output.name}")


DUAL_ROPE = OpContract(
    name="TcDualRope",
    summary="Rotates channel pairs (k, k + R) of x by (n + gamma T) times inv_freq[k].",
    inputs=(
        TensorContract(name="x", axes=("B", "H", "S", "D"), dtype="T", meaning="queries or keys"),
        TensorContract(
            name="position_ids", axes=("B", "S"), dtype="int64", meaning="n; -1 for padding"
        ),
        TensorContract(
            name="temporal_ids", axes=("B", "S"), dtype="int64", meaning="T; -1 for padding"
        ),
        TensorContract(
            name="inv_freq",
            axes=("R",),
            dtype="float32",
            meaning="radians a position, rope scaling included; 2 R <= D, the rest passes through",
        ),
    ),
    outputs=(TensorContract(name="y", axes=("B", "H", "S", "D"), dtype="T", meaning="x, rotated"),),
    # attention_factor multiplies cos and sin (yarn); 1 for every other rope type.
    attributes={"gamma": None, "attention_factor": 1.0},
    positive=("attention_factor",),
)

BLOCK_CAUSAL_ATTENTION = OpContract(
    name="TcBlockCausalAttention",
    summary="Writes k and v into the cache, then attends from row i to cache rows [0, kv_end[i]).",
    inputs=(
        TensorContract(name="q", axes=("B", "H", "S", "D"), dtype="T", meaning="rotated queries"),
        TensorContract(name="k", axes=("B", "K", "S", "D"), dtype="T", meaning="rotated keys"),
        TensorContract(name="v", axes=("B", "K", "S", "D"), dtype="T", meaning="values"),
        TensorContract(
            name="kv_end",
            axes=("B", "S"),
            dtype="int32",
            meaning="cache rows that this query sees, at most C; 0 for padding, whose y is 0",
        ),
        TensorContract(
            name="slots",
            axes=("B", "S"),
            dtype="int64",
            meaning="cache row that k and v are written to; -1 for padding",
        ),
        TensorContract(
            name="past_key", axes=("B", "K", "C", "D"), dtype="T", meaning="cache before the call"
        ),
        TensorContract(
            name="past_value", axes=("B", "K", "C", "D"), dtype="T", meaning="cache before the call"
        ),
    ),
    outputs=(
        TensorContract(name="y", axes=("B", "H", "S", "D"), dtype="T", meaning="attended values"),
        TensorContract(
            name="present_key",
            axes=("B", "K", "C", "D"),
            dtype="T",
            meaning="cache after the call; may be the same buffer as past_key",
            aliases="past_key",
        ),
        TensorContract(
            name="present_value",
            axes=("B", "K", "C", "D"),
            dtype="T",
            meaning="cache after the call; may be the same buffer as past_value",
            aliases="past_value",
        ),
    ),
    attributes={"scale": None},
    positive=("scale",),
)


def _in_int8(tensors: Sequence[TensorContract]) -> tuple[TensorContract, ...]:
    """The same with a cache in int8: codes in its place, and their scales after all else."""
    codes = [
        replace(tensor, dtype="int8", meaning=f"codes of the {tensor.meaning}")
        for tensor in tensors
        if "C" in tensor.axes
    ]
    scales = [
        TensorContract(
            name=f"{tensor.name}_scale",
            axes=tensor.axes[:-1],
            dtype="float32",
            meaning=f"what the codes of a row of {tensor.name} are multiplied by",
            aliases=tensor.aliases and f"{tensor.aliases}_scale",
        )
        for tensor in codes
    ]
    return (*(tensor for tensor in tensors if "C" not in tensor.axes), *codes, *scales)


BLOCK_CAUSAL_ATTENTION_INT8 = OpContract(
    name="TcBlockCausalAttentionInt8",
    summary="TcBlockCausalAttention over a cache in int8, with a scale for each row of each head.",
    inputs=_in_int8(BLOCK_CAUSAL_ATTENTION.inputs),
    outputs=_in_int8(BLOCK_CAUSAL_ATTENTION.outputs),
    attributes=BLOCK_CAUSAL_ATTENTION.attributes,
    positive=BLOCK_CAUSAL_ATTENTION.positive,
)

CONTRACTS = (DUAL_ROPE, BLOCK_CAUSAL_ATTENTION, BLOCK_CAUSAL_ATTENTION_INT8)
