# SPDX-License-Identifier: Apache-2.0
"""The ops in ONNX Runtime: types, shapes, in-place cache, and errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor

from tc_export.contracts.ops import (
    CONTRACTS,
    DOMAIN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    OpContract,
    TensorContract,
)
from tc_export.native.find import NativeLibrary
from tests.plugins.cpu.definition import (
    SIZES,
    expected_attention,
    expected_cache,
    expected_rotation,
    of_wrong_shape,
    ones_of,
    random_case,
    tensors_of,
)
from tests.plugins.cpu.test_attention_int8 import expected_parts, expected_y, int8_cache
from tests.plugins.cpu.test_attention_int8 import same as same_numbers

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
FIXED = {
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}
ONNX_TYPES = {
    **TYPES,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}
DUAL_ROPE, ATTENTION, ATTENTION_INT8 = CONTRACTS
ATTRIBUTES = {
    DUAL_ROPE.name: {"gamma": 0.5},
    ATTENTION.name: {"scale": 0.1},
    ATTENTION_INT8.name: {"scale": 0.1},
}

Axes = Callable[[TensorContract], "tuple[str | int | None, ...] | None"]


def names(tensor: TensorContract) -> tuple[str, ...]:
    return tensor.axes


def unsaid(tensor: TensorContract) -> None:
    """Not even the rank: ONNX Runtime then checks no shape of its own accord."""


def graph_of(
    contract: OpContract,
    dtype: torch.dtype,
    attributes: dict[str, float],
    *,
    inputs: Axes = names,
    outputs: Axes = names,
) -> onnx.GraphProto:
    """A graph of one node, as the exporter writes it."""

    def infos(tensors: tuple[TensorContract, ...], axes: Axes) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(t.name, FIXED.get(t.dtype, TYPES[dtype]), axes(t))
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
    return helper.make_graph(
        [node], "one", infos(contract.inputs, inputs), infos(contract.outputs, outputs)
    )


def session_of(library: NativeLibrary, graph: onnx.GraphProto) -> ort.InferenceSession:
    if not library.has_onnxruntime_ops:
        pytest.skip("the library was built without ONNX Runtime's headers")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library.path))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
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
@pytest.mark.parametrize("in_place", [(True, True), (False, False), (True, False), (False, True)])
def test_attention_writes_the_cache_that_is_bound_to_the_output(
    library: NativeLibrary, dtype: torch.dtype, in_place: tuple[bool, bool]
) -> None:
    case = random_case(
        batch=2, heads=(4, 2), tokens=30, rows=70, head_dim=16, past=20, frame=6, dtype=dtype
    )
    session = session_of(library, graph_of(ATTENTION, dtype, {"scale": case.scale}))
    expected = expected_attention(case)
    inputs = list(case.inputs())
    before = [tensor.clone() for tensor in inputs]
    caches = [
        past if same else torch.empty_like(past)
        for past, same in zip(inputs[5:], in_place, strict=True)
    ]
    written = [
        expected_cache(past, new, case.slots)
        for past, new in ((case.past_key, case.k), (case.past_value, case.v))
    ]
    y = torch.empty_like(case.q)
    run_bound(session, inputs, [y, *caches])
    assert np.abs(y.double().numpy() - expected).max() <= 4 * torch.finfo(dtype).eps
    for cache, wanted in zip(caches, written, strict=True):
        torch.testing.assert_close(cache, wanted, rtol=0, atol=0, equal_nan=True)
    for tensor, original, same in zip(inputs, before, (*[False] * 5, *in_place), strict=True):
        if not same:
            torch.testing.assert_close(tensor, original, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_attention_over_int8_writes_the_cache_that_is_bound(
    library: NativeLibrary, dtype: torch.dtype, in_place: bool
) -> None:
    case = random_case(
        batch=2, heads=(4, 2), tokens=30, rows=70, head_dim=16, past=20, frame=6, dtype=dtype
    )
    session = session_of(library, graph_of(ATTENTION_INT8, dtype, {"scale": case.scale}))
    cache = int8_cache(case)
    past = [part.clone() for part in cache]
    present = past if in_place else [torch.empty_like(part) for part in past]
    y = torch.empty_like(case.q)
    run_bound(session, [*case.inputs()[:5], *past], [y, *present])
    parts = expected_parts(case, cache)
    assert np.abs(y.double().numpy() - expected_y(case, parts)).max() <= 4 * torch.finfo(dtype).eps
    for found, expected in zip(present, parts, strict=True):
        same_numbers(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("attributes", [{}, {"attention_factor": 1.5}])
def test_rotation(library: NativeLibrary, dtype: torch.dtype, attributes: dict[str, float]) -> None:
    session = session_of(library, graph_of(DUAL_ROPE, dtype, {"gamma": 0.5, **attributes}))
    x = torch.randn(2, 3, 20, 12).to(dtype)
    n, t = torch.randint(0, 3000, (2, 2, 20))
    inv_freq = 100.0 ** -(torch.arange(5) / 5)
    y = torch.empty_like(x)
    run_bound(session, [x, n.contiguous(), t.contiguous(), inv_freq], [y])
    expected = expected_rotation(x, n, t, inv_freq, 0.5, attributes.get("attention_factor", 1.0))
    assert np.abs(y.double().numpy() - expected).max() <= 8 * torch.finfo(dtype).eps


WAYS_TO_SAY = {
    "in numbers": lambda t: tuple(SIZES[axis] for axis in t.axes),
    "by name": names,
    "but for the rank, not at all": lambda t: (None,) * len(t.axes),
    "not at all": unsaid,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("said", WAYS_TO_SAY)
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_outputs_are_known_to_have_the_shapes_of_inputs(
    library: NativeLibrary, contract: OpContract, said: str, dtype: torch.dtype
) -> None:
    """As soon as those are known, and not before: the rest of the graph is optimised for them."""
    axes = WAYS_TO_SAY[said]
    graph = graph_of(contract, dtype, ATTRIBUTES[contract.name], inputs=axes, outputs=unsaid)
    for output in contract.outputs:
        graph.node.append(helper.make_node("Shape", [output.name], [f"shape of {output.name}"]))
        graph.output.append(
            helper.make_tensor_value_info(f"shape of {output.name}", TensorProto.INT64, None)
        )
    session = session_of(library, graph)
    for found, output in zip(session.get_outputs(), contract.outputs, strict=False):
        assert tuple(found.shape) == (axes(output) if said in ("in numbers", "by name") else ())

    sizes = [[SIZES[axis] for axis in output.axes] for output in contract.outputs]
    results = tensors_of(contract.outputs, dtype)
    shapes = [torch.empty(len(shape), dtype=torch.int64) for shape in sizes]
    run_bound(session, ones_of(contract, dtype), results + shapes)
    assert [shape.tolist() for shape in shapes] == sizes


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_every_rank_and_every_shared_size_is_checked(
    library: NativeLibrary, contract: OpContract
) -> None:
    attributes = ATTRIBUTES[contract.name]
    graph = graph_of(contract, torch.float32, attributes, inputs=unsaid, outputs=unsaid)
    session = session_of(library, graph)
    right = ones_of(contract, torch.float32)
    feeds = {name: x.numpy() for name, x in zip(contract.input_names, right, strict=True)}
    session.run(None, feeds)
    for tensor, found in zip(contract.inputs, right, strict=True):
        for wrong in of_wrong_shape(contract, tensor, found):
            if wrong.dim() == 0:
                continue  # the Python binding takes no scalars
            with pytest.raises(InvalidArgument, match=rf"{contract.name}: \w+ is \[.+, expected "):
                session.run(None, {**feeds, tensor.name: wrong.numpy()})


@pytest.mark.parametrize("axis", ["B", "H", "S", "C", "D", "R"])
def test_an_empty_axis_is_an_error(library: NativeLibrary, axis: str) -> None:
    for contract in CONTRACTS:
        if not any(axis in tensor.axes for tensor in contract.inputs):
            continue
        attributes = ATTRIBUTES[contract.name]
        session = session_of(library, graph_of(contract, torch.float32, attributes))
        feeds = {
            t.name: x.numpy().take(range(0), t.axes.index(axis)) if axis in t.axes else x.numpy()
            for t, x in zip(contract.inputs, ones_of(contract, torch.float32), strict=True)
        }
        with pytest.raises(InvalidArgument, match=f"{contract.name}: invalid argument"):
            session.run(None, feeds)


def test_attributes_without_a_default_are_required(library: NativeLibrary) -> None:
    for contract in CONTRACTS:
        for name in ATTRIBUTES[contract.name]:
            with pytest.raises(Exception, match=name):
                session_of(library, graph_of(contract, torch.float32, {}))


def test_a_factor_that_is_no_float_is_an_error(library: NativeLibrary) -> None:
    """It would be taken for one that is not there."""
    graph = graph_of(DUAL_ROPE, torch.float32, {"gamma": 0.5, "attention_factor": 2})
    with pytest.raises(Exception, match="TcDualRope: attention_factor is an integer"):
        session_of(library, graph)


def test_errors_name_the_tensor_and_the_shapes(library: NativeLibrary) -> None:
    case = random_case(batch=1, heads=(4, 2), tokens=3, rows=8, head_dim=16, past=0)
    session = session_of(library, graph_of(ATTENTION, torch.float32, {"scale": 1.0}))
    feeds = dict(zip(ATTENTION.input_names, (x.numpy() for x in case.inputs()), strict=True))
    wrong = {
        "TcBlockCausalAttention: cache overflow": {"slots": feeds["slots"] + 6},
        r"kv_end is \[1, 2\], expected \[1, 3\]": {"kv_end": feeds["kv_end"][:, :2]},
        r"past_value is \[1, 2, 7, 16\], expected \[1, 2, 8, 16\]": {
            "past_value": feeds["past_value"][:, :, :7]
        },
        r"k is \[1, 1, 3, 16\], expected \[1, 2, 3, 16\]": {"k": feeds["k"][:, :1]},
    }
    for message, change in wrong.items():
        with pytest.raises(InvalidArgument, match=message):
            session.run(None, {**feeds, **change})
