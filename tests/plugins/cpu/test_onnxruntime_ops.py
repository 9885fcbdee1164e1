# SPDX-License-Identifier: Apache-2.0
"""The ops in ONNX Runtime: types, in-place cache, and errors."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from tc_export.engine.native_library import NativeLibrary
from tc_export.ops import CONTRACTS
from tc_export.ops.contract import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, OpContract
from tests.plugins.cpu.definition import (
    expected_attention,
    expected_cache,
    expected_rotation,
    random_case,
)

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
FIXED = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
ONNX_TYPES = {**TYPES, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64}
DUAL_ROPE, ATTENTION = CONTRACTS


def model_of(contract: OpContract, dtype: torch.dtype, attributes: dict[str, float]) -> bytes:
    """A graph of one node, as the exporter writes it."""

    def infos(tensors: tuple) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(t.name, FIXED.get(t.dtype, TYPES[dtype]), t.axes)
            for t in tensors
        ]

    node = helper.make_node(
        contract.name,
        contract.input_names,
        [t.name for t in contract.outputs],
        domain=DOMAIN,
        plugin_namespace=PLUGIN_NAMESPACE,
        plugin_version=PLUGIN_VERSION,
        **attributes,
    )
    graph = helper.make_graph([node], "one", infos(contract.inputs), infos(contract.outputs))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session_of(library: NativeLibrary, model: bytes) -> ort.InferenceSession:
    if not library.has_onnxruntime_ops:
        pytest.skip("the library was built without ONNX Runtime's headers")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library.path))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_bound(session: ort.InferenceSession, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Run on the tensors' own memory, whatever their type."""
    binding = session.io_binding()
    for bind, nodes, tensors in (
        (binding.bind_input, session.get_inputs(), inputs),
        (binding.bind_output, session.get_outputs(), outputs),
    ):
        for node, tensor in zip(nodes, tensors, strict=True):
            kind = ONNX_TYPES[tensor.dtype]
            bind(node.name, "cpu", 0, kind, list(tensor.shape), tensor.data_ptr())
    session.run_with_iobinding(binding)


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_in_place(library: NativeLibrary, dtype: torch.dtype) -> None:
    case = random_case(
        batch=2, heads=(4, 2), tokens=30, rows=70, head_dim=16, past=20, frame=6, dtype=dtype
    )
    session = session_of(library, model_of(ATTENTION, dtype, {"scale": case.scale}))
    expected = expected_attention(case)
    cache = [
        expected_cache(past, new, case.slots)
        for past, new in ((case.past_key, case.k), (case.past_value, case.v))
    ]
    y = torch.empty_like(case.q)
    run_bound(session, list(case.inputs()), [y, case.past_key, case.past_value])
    assert np.abs(y.double().numpy() - expected).max() <= 4 * torch.finfo(dtype).eps
    for written, wanted in zip((case.past_key, case.past_value), cache, strict=True):
        torch.testing.assert_close(written, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("attributes", [{}, {"attention_factor": 1.5}])
def test_rotation(library: NativeLibrary, dtype: torch.dtype, attributes: dict[str, float]) -> None:
    session = session_of(library, model_of(DUAL_ROPE, dtype, {"gamma": 0.5, **attributes}))
    x = torch.randn(2, 3, 20, 12).to(dtype)
    n, t = torch.randint(0, 3000, (2, 2, 20))
    inv_freq = 100.0 ** -(torch.arange(5) / 5)
    y = torch.empty_like(x)
    run_bound(session, [x, n.contiguous(), t.contiguous(), inv_freq], [y])
    expected = expected_rotation(x, n, t, inv_freq, 0.5, attributes.get("attention_factor", 1.0))
    assert np.abs(y.double().numpy() - expected).max() <= 8 * torch.finfo(dtype).eps


def test_errors_name_the_tensor_and_the_shapes(library: NativeLibrary) -> None:
    case = random_case(batch=1, heads=(4, 2), tokens=3, rows=8, head_dim=16, past=0)
    session = session_of(library, model_of(ATTENTION, torch.float32, {"scale": 1.0}))
    feeds = dict(zip(ATTENTION.input_names, (x.numpy() for x in case.inputs()), strict=True))
    wrong = {
        "cache overflow": {"slots": feeds["slots"] + 6},
        r"kv_end is \[1, 2\], expected \[1, 3\]": {"kv_end": feeds["kv_end"][:, :2]},
        r"past_value is \[1, 2, 7, 16\], expected \[1, 2, 8, 16\]": {
            "past_value": feeds["past_value"][:, :, :7]
        },
        r"k is \[1, 1, 3, 16\], expected \[1, 2, 3, 16\]": {"k": feeds["k"][:, :1]},
    }
    for message, change in wrong.items():
        with pytest.raises(Exception, match=message):
            session.run(None, {**feeds, **change})
    with pytest.raises(Exception, match="scale"):
        session_of(library, model_of(ATTENTION, torch.float32, {}))
