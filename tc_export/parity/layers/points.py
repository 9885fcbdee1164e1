# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a layer's ONNX graph are which of PyTorch's: by the exporter's module notes.

Axes: S tokens, E channels, H heads, D head size.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tc_export.contracts.graph_io import INPUTS_EMBEDS, PIXEL_VALUES, is_hidden, is_past, is_present
from tc_export.contracts.ops import BLOCK_CAUSAL_ATTENTION, BLOCK_CAUSAL_ATTENTION_INT8, DUAL_ROPE
from tc_export.graph.export import MODULE_NOTE
from tc_export.parity.layers.recorder import (
    ATTENTION,
    KEYS,
    QUERIES,
    RESULT,
    VALUES,
    after_rotation,
    before_rotation,
    cache_rows,
    input_of,
    into_attention,
)

MOVEMENTS = ("Reshape", "Transpose", "Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze")
"""Operators that change no number, but where it stands."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A tensor that both sides have.

    Attributes:
        tensor: in PyTorch's terms.
        value: in the ONNX graph.
        by_heads: it is [1, H, S, D] in the graph, and not [1, S, E].
    """

    tensor: str
    value: ir.Value
    by_heads: bool = False

    def array(self, calls: Sequence[np.ndarray], like: np.ndarray) -> np.ndarray:
        """What the graph handed out call by call, in the shape of PyTorch's tensor [S, ...]."""
        if self.by_heads:
            calls = [x.swapaxes(1, 2) for x in calls]
        whole = np.concatenate([x[0] for x in calls])
        return whole.reshape(like.shape) if whole.size == like.size else whole


class PartGraph:
    """A graph, or a layer's, with what is known of its nodes."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        """Read the graph of the module `prefix`, such as `decoder.layers.7`."""
        self._prefix = prefix
        self.graph = graph
        self.order = {node: index for index, node in enumerate(graph)}
        self._computed = {
            x
            for x in graph.inputs
            if x.name in (INPUTS_EMBEDS, PIXEL_VALUES)
            or is_hidden(str(x.name))
            or is_past(str(x.name))
        }
        for node in graph:
            if self._computed.intersection(x for x in node.inputs if x is not None):
                self._computed.update(node.outputs)

    def points(self, wanted: Callable[[str], bool] = lambda tensor: True) -> list[Point]:
        """Everything that can be compared, in the order in which the graph computes it."""
        found: dict[str, Point] = {}
        for point in (*self._ops(), *self._modules()):
            if wanted(point.tensor):
                found.setdefault(str(point.value.name), point)
        return sorted(found.values(), key=lambda x: (self.place(x.value), not _is_cache(x)))

    def place(self, value: ir.Value) -> int:
        """Where in the graph's order a value is made; -1 for an input."""
        node = value.producer()
        return -1 if node is None else self.order[node]

    def module_of(self, node: ir.Node) -> str | None:
        """The module that made a node, below the prefix; empty for that itself."""
        note = node.metadata_props.get(MODULE_NOTE)
        for scope in reversed(ast.literal_eval(note) if note else ()):
            if scope == self._prefix:
                return ""
            if scope.startswith(f"{self._prefix}."):
                return str(scope.removeprefix(f"{self._prefix}."))
        return None

    def computed_nodes(self, module: str) -> list[ir.Node]:
        """Nodes of a module whose results depend on the tokens."""
        return [
            node
            for node in self.graph
            if self.module_of(node) == module and node.outputs[0] in self._computed
        ]

    def nodes_of(self, op_type: str) -> list[ir.Node]:
        """Nodes of an operator."""
        return [node for node in self.graph if node.op_type == op_type]

    def computed_inputs(self, node: ir.Node) -> list[ir.Value]:
        """A node's inputs that depend on the tokens."""
        return [x for x in node.inputs if x is not None and x in self._computed]

    def _ops(self) -> Iterator[Point]:
        """Inputs and outputs of the custom ops, cache rows, and what leaves the layer."""
        for what, node in zip((QUERIES, KEYS), self.nodes_of(DUAL_ROPE.name), strict=False):
            for name, value in (
                (before_rotation(what), node.inputs[0]),
                (after_rotation(what), node.outputs[0]),
            ):
                assert value is not None
                yield Point(tensor=name, value=value, by_heads=True)
        attentions = (BLOCK_CAUSAL_ATTENTION.name, BLOCK_CAUSAL_ATTENTION_INT8.name)
        for node in (x for name in attentions for x in self.nodes_of(name)):
            for what, value in zip((QUERIES, KEYS, VALUES), node.inputs[:3], strict=True):
                assert value is not None
                yield Point(tensor=into_attention(what), value=value, by_heads=True)
            yield Point(tensor=f"output of {ATTENTION}", value=node.outputs[0], by_heads=True)
        for value in self.graph.outputs:
            for what, part in ((KEYS, ".key"), (VALUES, ".value")):
                if is_present(str(value.name)) and str(value.name).endswith(part):
                    yield Point(tensor=cache_rows(what), value=value)
            if is_hidden(str(value.name)):
                yield Point(tensor=RESULT, value=value)

    def _modules(self) -> Iterator[Point]:
        """Inputs and outputs of the smallest modules."""
        modules = [x for x in dict.fromkeys(map(self.module_of, self.graph)) if x]
        for module in modules:
            nodes = self.computed_nodes(module)
            if not nodes or any(x.startswith(f"{module}.") for x in modules):
                continue
            yield Point(tensor=module, value=nodes[-1].outputs[0])
            yield Point(tensor=input_of(module), value=self.computed_inputs(nodes[0])[0])


def _is_cache(point: Point) -> bool:
    return point.tensor in (cache_rows(KEYS), cache_rows(VALUES))
