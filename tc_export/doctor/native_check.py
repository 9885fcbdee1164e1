# SPDX-License-Identifier: Apache-2.0
"""Which of our ops ONNX Runtime gets from the native library; runs in a process of its own.

A model of a single custom node, without the function that would replace it, opens in ONNX Runtime
only where a kernel serves the node.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort

from tc_export.contracts.ops import CONTRACTS, DOMAIN, OPSET_VERSION, OpContract, TensorContract
from tc_export.native.find import find_native_library

_ERRORS_ONLY = 3
_OPSET, _IR_VERSION = 23, 10
_TYPES = {
    "T": onnx.TensorProto.FLOAT,
    "float32": onnx.TensorProto.FLOAT,
    "int8": onnx.TensorProto.INT8,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
}


def main() -> None:
    """Print the library's path and ops as JSON, or null where there is no library."""
    library = find_native_library()
    if library is None:
        print("null")
        return
    served = [c.name for c in CONTRACTS if library.has_onnxruntime_ops and serves(library.path, c)]
    print(json.dumps({"path": str(library.path), "onnxruntime_ops": served}))


def serves(library: Path, contract: OpContract) -> bool:
    """True where the library has a kernel for the op."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY + 1
    options.register_custom_ops_library(str(library))
    try:
        ort.InferenceSession(one_node_model(contract), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises its own classes, without a common base
        return False
    return True


def one_node_model(contract: OpContract) -> bytes:
    """A model of one node of the op, with every attribute at 1 where it has no default."""

    def value(tensor: TensorContract) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], tensor.axes)

    node = onnx.helper.make_node(
        contract.name,
        [tensor.name for tensor in contract.inputs],
        [tensor.name for tensor in contract.outputs],
        domain=DOMAIN,
    )
    for name, default in contract.attributes.items():
        number = 1.0 if default is None else default
        node.attribute.append(onnx.helper.make_attribute(name, number))
    graph = onnx.helper.make_graph(
        [node], contract.name, [*map(value, contract.inputs)], [*map(value, contract.outputs)]
    )
    opsets = [
        onnx.helper.make_opsetid("", _OPSET),
        onnx.helper.make_opsetid(DOMAIN, OPSET_VERSION),
    ]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content
