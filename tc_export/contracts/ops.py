# SPDX-License-Identifier: Apache-2.0
"""What a custom op promises: its inputs, outputs and attributes, as data.

The PyTorch op, the ONNX schema, the model-local function, the kernels' bindings and the tests all
read the same contract, so that none can drift from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "tc"
OPSET_VERSION = 1
PLUGIN_NAMESPACE = "tc"
PLUGIN_VERSION = "1"

FLOAT_TYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TensorContract:
    """One input or output.

    `axes` names each dimension; the same letter is the same length everywhere in the op.
    `dtype` is a NumPy name, or `T` for the op's floating-point type (one of `FLOAT_TYPES`).
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
