# SPDX-License-Identifier: Apache-2.0
"""A graph in the form that a given TensorRT's parser takes.

1. The bodies of our ops are left out, for the plugins (`passes/drop_local_functions.py`).
2. Before 10.14, attention is written in steps (`passes/attention_in_steps.py`); from then on it
   states no defaults (`passes/attention_defaults.py`).
3. The opset is the newest that both the graph and the parser know. Between the two no operator of
   ours means anything else; ONNX's full checker then proves that each exists there, in its types.
4. Below opset 22, bfloat16 convolutions run in float32 (`passes/bfloat16_convolution.py`).

Weights stay where the source graph has them: the two graphs lie in one folder and share them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tc_export.errors import TcExportError
from tc_export.graph.export import save_checked
from tc_export.graph.onnx_ops import custom_node_counts
from tc_export.graph.passes.attention_defaults import drop_attention_defaults
from tc_export.graph.passes.attention_in_steps import attention_in_steps
from tc_export.graph.passes.bfloat16_convolution import FIRST_BFLOAT16_OPSET, convolve_in_float32
from tc_export.graph.passes.drop_local_functions import drop_local_functions
from tc_export.graph.tensorrt_operators import (
    Version,
    check_operators,
    has_operator,
    newest_opset,
    read_version,
)


@dataclass(frozen=True, kw_only=True)
class TensorrtForm:
    """What became of a graph; `custom_nodes` are how many of each op are left to plugins."""

    opset: int
    custom_nodes: dict[str, int]
    rewritten: dict[str, int]
    """How many nodes were rewritten, by operator."""


def to_tensorrt_form(source: Path, destination: Path, tensorrt: str) -> TensorrtForm:
    """Write the graph `source` to `destination`, beside it, as TensorRT `tensorrt` parses it.

    Raises:
        UnsupportedEnvironment: this TensorRT cannot run the graph; names the nodes.
        UsageError: `tensorrt` is no version.
        TcExportError: the two are not in one folder, and could not share their weights.
    """
    if source.resolve().parent != destination.resolve().parent:
        raise TcExportError(f"{destination} is not beside {source}, where its weights lie")
    version = read_version(tensorrt)
    model = ir.load(source)
    opset = min(model.opset_imports[""], newest_opset(version))
    rewritten = _rewrite(model, version, opset)
    model.opset_imports[""] = opset
    check_operators(model, tensorrt)
    save_checked(model, destination)
    return TensorrtForm(opset=opset, custom_nodes=custom_node_counts(model), rewritten=rewritten)


def _rewrite(model: ir.Model, version: Version, opset: int) -> dict[str, int]:
    """Run the passes that the version needs; return how many nodes they rewrote, by operator."""
    rewritten: Counter[str] = Counter()
    drop_local_functions(model)
    if has_operator("Attention", version):
        rewritten += drop_attention_defaults(model)
    else:
        rewritten += attention_in_steps(model, version)
    if opset < FIRST_BFLOAT16_OPSET:
        rewritten += convolve_in_float32(model)
    RemoveUnusedNodesPass()(model)  # what nobody reads need not be parsed
    return dict(rewritten)
