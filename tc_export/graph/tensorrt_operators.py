# SPDX-License-Identifier: Apache-2.0
"""What the ONNX parser of each TensorRT version takes, of all that our graphs may contain.

Sources: onnx-tensorrt's `docs/operators.md` as it came with TensorRT 10.0 ("operators in the
inclusive range of opset 9 to opset 20") and 10.15 ("opset 9 to opset 24"), and its
`docs/Changelog.md`: Attention came with 10.14; RotaryEmbedding, RMSNormalization and TensorScatter
with 10.15. From 10.7 on "plugins over local functions" are taken; before that a function is
inlined and the plugin is never asked. The parser itself does not refuse a newer opset, but reads
an operator by the rules that it knows: so a graph states no newer one.

bfloat16 is a type of every operator here since TensorRT 9.0; that the device multiplies in it is
the target's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from tc_export.contracts.ops import CONTRACTS, DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION
from tc_export.errors import TcExportError, UnsupportedEnvironment, UsageError
from tc_export.targets import SCALES_FOR_BLOCKS

Version = tuple[int, int]
"""Major and minor."""

OLDEST: Version = (10, 3)
"""JetPack 6.2's: the oldest that a target of ours has."""

LOCAL_FUNCTIONS_YIELD: Version = (10, 7)
"""From here on a plugin is preferred to the local function of the same name."""

OPSETS: dict[Version, int] = {(10, 0): 20, (10, 14): 23, (10, 15): 24}
"""The newest ONNX opset, from each version on. What lies between 10.6 and 10.13 may take more than
20: its list was not seen, and nothing that we emit would gain by it."""

_CAME_WITH: dict[Version, str] = {
    (10, 0): (
        "Add And AveragePool Cast CastLike Clip Concat Constant ConstantOfShape Conv "
        "DequantizeLinear Div Equal Erf Exp Expand Gather GatherElements GatherND Gelu Gemm "
        "Greater GreaterOrEqual Identity LayerNormalization Less LessOrEqual MatMul Max MaxPool "
        "Min Mul Neg Not Or Pow QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceSum "
        "Relu Reshape ScatterElements ScatterND Shape Sigmoid Slice Softmax Split Sqrt Squeeze "
        "Sub Tanh Tile Transpose Trilu Unsqueeze Where"
    ),
    (10, 14): "Attention",
    (10, 15): "RotaryEmbedding RMSNormalization TensorScatter",
}

FIRST_VERSION: dict[str, Version] = {
    op_type: version for version, names in _CAME_WITH.items() for op_type in names.split()
}
"""The first TensorRT whose parser has the operator, of those that we emit or might emit."""

CONSTANT_AXES: dict[str, Version | None] = {
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceSum"), None),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (10, 7)),
}
"""Operators whose axes, their second input, must be a constant or an initialiser; and the version
from which on they may be computed, if there is one."""

PLUGIN_ATTRIBUTES = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}
"""Of every node that a plugin serves: the parser finds the plugin by them and the op's name."""


def read_version(tensorrt: str) -> Version:
    """Major and minor of a version such as `10.3` or `10.16.1.11`.

    Raises:
        UsageError: it is no version.
        UnsupportedEnvironment: it is older than any that we build for.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)*", tensorrt)
    if found is None:
        raise UsageError(f"the TensorRT version {tensorrt!r} is not of the form 10.3")
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        raise UnsupportedEnvironment(
            f"TensorRT {tensorrt} is too old: expected {spell(OLDEST)} or later",
            hint="a Jetson gets it with JetPack 6.2",
        )
    return version


def spell(version: Version) -> str:
    """`10.3` for (10, 3)."""
    return f"{version[0]}.{version[1]}"


def newest_opset(version: Version) -> int:
    """The newest ONNX opset whose operators the parser knows."""
    return OPSETS[max(since for since in OPSETS if since <= version)]


def has_operator(op_type: str, version: Version) -> bool:
    """True where the parser has a standard operator."""
    return FIRST_VERSION.get(op_type, (version[0] + 1, 0)) <= version


def check_operators(model: ir.Model, tensorrt: str) -> None:
    """See that the parser of a TensorRT version takes every node as it is meant.

    Raises:
        UnsupportedEnvironment: it lacks an operator; names each node, and the version that has it.
        TcExportError: a node is meant for a plugin, and would not reach it.
    """
    version = read_version(tensorrt)
    if model.functions and version < LOCAL_FUNCTIONS_YIELD:
        names = ", ".join(sorted(function.name for function in model.functions.values()))
        raise TcExportError(
            f"the graph carries the functions {names}: TensorRT {spell(version)} would take them "
            "in place of the plugins"
        )
    opset = model.opset_imports.get("", 0)
    if opset > newest_opset(version):
        raise UnsupportedEnvironment(
            f"the graph is of ONNX opset {opset}; the parser of TensorRT {spell(version)} knows "
            f"opset {newest_opset(version)} and older"
        )
    lacking = list(_lacking(model, version))
    if lacking:
        raise UnsupportedEnvironment(
            f"the parser of TensorRT {spell(version)} does not have these operators of the graph:\n"
            + "\n".join(f"  {line}" for line in lacking),
            hint="choose a newer TensorRT, or another mask: docs/pipeline.md",
        )


def _lacking(model: ir.Model, version: Version) -> Iterator[str]:
    plugins = {contract.name for contract in CONTRACTS}
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_type in plugins:
            _check_plugin_attributes(node)
        elif not node.domain and node.op_type in CONSTANT_AXES:
            _check_axes(node, version)
        elif node.domain or not has_operator(node.op_type, version) or _lacks_blocks(node, version):
            first = None if node.domain else _first_version(node)
            since = f"it came with {spell(first)}" if first else "no version is known to have it"
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            yield f"node {node.name or node.outputs[0].name}: {name}; {since}"


def _lacks_blocks(node: ir.Node, version: Version) -> bool:
    return node.attributes.get_int("block_size", 0) > 0 and version < SCALES_FOR_BLOCKS


def _first_version(node: ir.Node) -> Version | None:
    if node.attributes.get_int("block_size", 0) > 0:
        return SCALES_FOR_BLOCKS
    return FIRST_VERSION.get(node.op_type)


def _check_axes(node: ir.Node, version: Version) -> None:
    since = CONSTANT_AXES[node.op_type]
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or (since is not None and since <= version):
        return
    producer = axes.producer()
    if not axes.is_initializer() and (producer is None or producer.op_type != "Constant"):
        raise TcExportError(
            f"the axes of node {node.name} ({node.op_type}) are computed, and TensorRT "
            f"{spell(version)} wants them as a constant: the export should have folded them"
        )


def _check_plugin_attributes(node: ir.Node) -> None:
    """A node without these is looked for among the plugins of no namespace, and not found."""
    found = {name: node.attributes.get_string(name) for name in PLUGIN_ATTRIBUTES}
    if found != PLUGIN_ATTRIBUTES:
        raise TcExportError(
            f"node {node.name} is meant for the plugin {node.op_type}, but its attributes are "
            f"{found}, expected {PLUGIN_ATTRIBUTES}"
        )
