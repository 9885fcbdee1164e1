# SPDX-License-Identifier: Apache-2.0
"""Opens a bundle's graphs in ONNX Runtime, in the forms that its processor kernels can run.

bfloat16 is computed in float32 and rounded after each operator; weights in NVFP4 are looked up in a
table; products in fp8 are multiplied in the graph's own format. What a graph computes stays what it
was, unless it is asked not to round.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from tc_export.dtypes import DType
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.graph.passes.float32_arithmetic import compute_in_float32
from tc_export.graph.passes.inputs_as_they_are import leave_inputs
from tc_export.graph.passes.nvfp4_by_table import look_up_nvfp4


@dataclass(frozen=True, kw_only=True)
class GraphOpener:
    """Opens the graph that lies at `path`, or parts of it.

    Attributes:
        path: of the whole graph; weights lie beside it.
        dtype: the graph's format.
        unrounded: compute 16-bit graphs in float32 without rounding.
        inputs_as_they_are: do not round what enters products of eight bits.
        native_library: serves the custom ops; None leaves them to their functions.
        threads: of the CPU; None is one for each core.
    """

    path: Path
    dtype: DType
    unrounded: bool = False
    inputs_as_they_are: bool = False
    native_library: Path | None = None
    threads: int | None = None

    def open(self, part: ir.Model | None = None) -> OrtEngine:
        """Open a part, or the whole graph.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        proto = (
            onnx.load(self.path, load_external_data=False) if part is None else ir.to_proto(part)
        )
        in_fp8 = rounds_to_fp8(proto)
        inlined = False
        if self.dtype is not DType.FLOAT32 and (self.unrounded or self.dtype is DType.BFLOAT16):
            inlined = bool(compute_in_float32(proto, self.dtype, rounded=not self.unrounded))
        changed = inlined + look_up_nvfp4(proto)
        if self.inputs_as_they_are:
            changed += leave_inputs(proto)
        return OrtEngine(
            self.path,
            rewritten=proto.SerializeToString() if changed or part is not None else None,
            # A graph whose functions were put in place has no op left to serve.
            native_library=None if inlined else self.native_library,
            threads=self.threads,
            fuses_rounding=not in_fp8,
        )


def rounds_to_fp8(model: onnx.ModelProto) -> bool:
    """True where a graph rounds what enters its products to fp8: its zero point has that type."""
    constants = {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant"
    }
    constants |= {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = (
        constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"
    )
    return any(zero.data_type == DType.FP8.onnx for zero in zeros)
