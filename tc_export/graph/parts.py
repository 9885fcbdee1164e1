# SPDX-License-Identifier: Apache-2.0
"""A decoder graph, cut at layer boundaries into parts that run one after the other.

A part is a graph of its own: consecutive layers, with their share of the cache. The first takes
embeddings, each later one the hidden states of the one before it, and the last gives logits. Parts
refer to the same weights as the whole graph, by file and offset, and nothing is copied.

1. What layers share and what does not depend on the embeddings or the cache, such as constants and
   what follows from positions, is computed in each part anew.
2. Sizes of the call, which the exporter reads from whatever input is at hand, are read from one
   that every part has.
3. A value that leaves one layer for the next is a boundary. There is one for each layer; anything
   else that would cross a cut is an error.

Nodes are those of the whole graph, with their names, so a part computes what they compute there:
bit for bit, where the runtime chooses its kernels node by node. Where it fuses across a boundary,
or folds constants of a whole graph, it may differ by a rounding.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    LOGITS,
    LOGITS_INDICES,
    POSITION_IDS,
    decoder_inputs,
    decoder_outputs,
    hidden_name,
    is_past,
    names,
)
from tc_export.contracts.parts import Part
from tc_export.errors import TcExportError
from tc_export.graph.export import MODULE_NOTE, expected_custom_nodes, save_checked
from tc_export.graph.onnx_ops import custom_node_counts

_LAYER = re.compile(r"decoder\.layers\.(\d+)")


def cut_decoder(graph: Path, config: ModelConfig, parts: Sequence[Part]) -> list[ir.Model]:
    """Cut the decoder graph at `graph` into `parts`, which cover its layers in order.

    A part that is written must lie in the graph's folder, where its weights are.

    Raises:
        TcExportError: the graph is not one that the exporter writes: something else than the
            hidden states would cross a cut.
    """
    layers = config.text.num_hidden_layers
    covered = [layer for part in parts for layer in part.layers]
    if covered != list(range(layers)):
        raise ValueError(f"{[str(part) for part in parts]} do not cover {layers} layers in order")
    model = ir.load(graph)
    _read_sizes_from_common_inputs(model, config)
    _name_boundaries(model, layers)
    return [
        _extract(
            model,
            names(decoder_inputs(config, part.layers)),
            names(decoder_outputs(config, part.layers)),
            str(part),
        )
        for part in parts
    ]


def cut_layers(graph: Path, config: ModelConfig) -> tuple[list[ir.Model], ir.Model]:
    """Cut the decoder graph into a part for each layer, the hidden states its first output.

    Returns:
        The layers in order, and the head: from the last hidden states to the logits.

    Raises:
        TcExportError: as `cut_decoder`.
    """
    count = config.text.num_hidden_layers
    model = ir.load(graph)
    _read_sizes_from_common_inputs(model, config)
    _name_boundaries(model, count)[count - 1].name = hidden_name(count)
    layers = []
    for index in range(count):
        part = range(index, index + 1)
        inputs = [x for x in names(decoder_inputs(config, part)) if x != LOGITS_INDICES]
        cached = names(decoder_outputs(config, part))[1:]
        layers.append(
            _extract(model, inputs, [hidden_name(index + 1), *cached], str(Part(index, index + 1)))
        )
    head = _extract(model, [hidden_name(count), LOGITS_INDICES], [LOGITS], "the head")
    return layers, head


def write_parts(
    graph: Path, config: ModelConfig, places: Mapping[Part, Path]
) -> dict[Part, dict[str, int]]:
    """Write a graph for each part, in the order of the layers; return each one's custom nodes.

    Raises:
        TcExportError: as `cut_decoder`; or a part has not the custom nodes of its layers.
    """
    models = cut_decoder(graph, config, tuple(places))
    counts = {}
    for (part, path), model in zip(places.items(), models, strict=True):
        counts[part] = custom_node_counts(model)
        expected = expected_custom_nodes(config, part.layers)
        if counts[part] != expected:
            raise TcExportError(
                f"{part} of the decoder have custom nodes {counts[part]}, and should have "
                f"{expected}"
            )
        save_checked(model, path)
    return counts


def _read_sizes_from_common_inputs(model: ir.Model, config: ModelConfig) -> bool:
    """Rule 2; True where a node was changed."""
    tensors = {tensor.name: tensor for tensor in decoder_inputs(config)}
    common = {
        axis_name: (value, axis)
        for value in model.graph.inputs
        if value.name in (POSITION_IDS, KEY_FRAME_IDS)
        for axis, axis_name in tensors[value.name].dynamic_axes.items()
    }
    changed = False
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Shape" and not node.domain else None
        if source is None or source.name not in tensors:
            continue
        axes = tensors[source.name].axes
        start, end = (
            node.attributes.get_int(name, default)
            for name, default in (("start", 0), ("end", len(axes)))
        )
        found = common.get(str(axes[start])) if end == start + 1 else None
        if found is not None and source is not found[0]:
            node.replace_input_with(0, found[0])
            node.attributes["start"] = ir.AttrInt64("start", found[1])
            node.attributes["end"] = ir.AttrInt64("end", found[1] + 1)
            changed = True
    return changed


def _name_boundaries(model: ir.Model, layers: int) -> dict[int, ir.Value]:
    """Find the hidden states that leave each layer, and name those of all but the last so."""
    leaving: dict[int, list[ir.Value]] = {layer: [] for layer in range(layers)}
    computed = {x for x in model.graph.inputs if x.name == INPUTS_EMBEDS or is_past(str(x.name))}
    for node in model.graph:
        own = _layer_of(node)
        if computed.isdisjoint(value for value in node.inputs if value is not None):
            continue
        computed.update(node.outputs)
        for value in node.outputs:
            if own is not None and any(_layer_of(use.node) != own for use in value.uses()):
                leaving[own].append(value)
    for layer, values in leaving.items():
        if len(values) != 1:
            found = ", ".join(str(value.name) for value in values) or "nothing"
            raise TcExportError(
                f"the decoder graph cannot be cut after layer {layer}: {found} leaves it, and one "
                "value should"
            )
        if layer + 1 < layers:
            values[0].name = hidden_name(layer + 1)
    return {layer: value for layer, (value,) in leaving.items()}


def _layer_of(node: ir.Node) -> int | None:
    """The decoder layer whose module made a node, as the exporter noted it."""
    scopes = node.metadata_props.get(MODULE_NOTE)
    for scope in ast.literal_eval(scopes) if scopes else ():
        found = _LAYER.fullmatch(scope)
        if found:
            return int(found[1])
    return None


def _extract(
    model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], title: str
) -> ir.Model:
    """A graph of its own from some values to others, with the functions that it uses."""
    try:
        graph = ir.convenience.extract(model.graph, inputs, outputs)
    except ValueError as error:
        raise TcExportError(f"the decoder graph cannot be cut into {title}: {error}") from error
    used = {node.op_identifier() for node in graph.all_nodes()}
    functions = [function.clone() for key, function in model.functions.items() if key in used]
    return ir.Model(
        graph, ir_version=model.ir_version, producer_name=model.producer_name, functions=functions
    )
