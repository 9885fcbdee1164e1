# SPDX-License-Identifier: Apache-2.0
"""What a custom op promises: its inputs, outputs and attributes, as data.

The PyTorch op, the ONNX schema, the model-local function, the kernels' bindings and the tests all
read the same contract, so that none can drift from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.dtypes import DType

DOMAIN = "tc"
OPSET_VERSION = 1
PLUGIN_NAMESPACE = "tc"
PLUGIN_VERSION = "1"

FLOAT_TYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class TensorContract:
    """One input or output.

    `axes` names each dimension; the same letter is the same length everywhere in the op.
    `dtype` is a `DType`, or `T` for the op's floating-point type (one of `FLOAT_TYPES`).
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class OpContract:
    """A custom op of domain `tc`.

    `attributes` maps each float attribute to its default, or to None where it must be given.
    """

    name: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    attributes: dict[str, float | None]
    summary: str

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(tensor.name for tensor in self.inputs)


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
        ),
        TensorContract(
            name="present_value",
            axes=("B", "K", "C", "D"),
            dtype="T",
            meaning="cache after the call; may be the same buffer as past_value",
        ),
    ),
    attributes={"scale": None},
)

CONTRACTS = (DUAL_ROPE, BLOCK_CAUSAL_ATTENTION)
