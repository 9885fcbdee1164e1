# SPDX-License-Identifier: Apache-2.0
"""Who is to blame: the first layer that errs by itself, its first wrong node, and the pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tc_export.contracts.graph_io import VISUAL_FEATURES
from tc_export.parity.layers.attention import attention_pattern, cache_pattern
from tc_export.parity.layers.check import Arithmetic, Judges
from tc_export.parity.layers.modules import find_wrong_head_node, find_wrong_vision_node
from tc_export.parity.layers.nodes import Seen, WrongNode, find_wrong_node
from tc_export.parity.layers.patterns import (
    ACCUMULATED,
    ACTIVATION,
    ATTENTION_OUTPUT,
    NORM_EPSILON,
    OTHER,
    OVERFLOW,
    POOLING,
    SELECTION,
    SUM,
    Pattern,
    activation_pattern,
    linear_pattern,
    norm_pattern,
    rounding_pattern,
    spell_share,
    sum_pattern,
)
from tc_export.parity.layers.points import PartGraph
from tc_export.parity.layers.recorder import (
    ATTENTION,
    KEYS,
    QUERIES,
    RESULT,
    VALUES,
    after_rotation,
    cache_rows,
    input_of,
    into_attention,
)
from tc_export.parity.layers.result import HEAD, VISION, Culprit, Measured, worst_shares
from tc_export.parity.layers.rotation import rotation_pattern
from tc_export.parity.layers.sequences import LayerSequence

FIRST_SUM = "x + self_attn"
PRODUCT = input_of("mlp.down_proj")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was measured, and what it takes to look into a layer.

    Attributes:
        isolated, accumulated, vision, head: as in `ByLayerResult`.
        places: the columns.
        layers: each layer's graph.
        last: the graph of the last norm and the head.
        sequences: what went through.
        suspect: the first layer that errs by itself.
        inputs: hidden states [S, E] of each sequence that enter it in truth.
        last_inputs: those that leave the last layer.
    """

    isolated: Sequence[Measured]
    accumulated: Sequence[Measured]
    vision: Sequence[Measured]
    head: Sequence[Measured]
    places: Sequence[str]
    layers: Sequence[ir.Model]
    last: ir.Model
    sequences: Sequence[LayerSequence]
    suspect: int | None
    inputs: Sequence[np.ndarray]
    last_inputs: Sequence[np.ndarray]


def find_culprit(vision_judges: Judges, judges: Judges, evidence: Evidence) -> Culprit | None:
    """The first that errs by more than its tolerance, in the order of the model; None: nobody."""
    if _worst(evidence.vision, 0) > 1:
        arithmetic = _clearest(vision_judges, evidence.vision, 0)
        found = find_wrong_vision_node(vision_judges, arithmetic, evidence.sequences[0])
        return _outside(evidence, evidence.vision, VISION, found)
    if evidence.suspect is not None:
        return _layer_culprit(judges, evidence, evidence.suspect)
    if _worst(evidence.head, 0) > 1:
        arithmetic = _clearest(judges, evidence.head, 0)
        sequence, states = evidence.sequences[0], evidence.last_inputs[0]
        found = find_wrong_head_node(judges, arithmetic, evidence.last, sequence, states)
        return _outside(evidence, evidence.head, HEAD, found)
    for layer in range(len(evidence.layers)):
        if _worst(evidence.accumulated, layer) > 1:
            return _accumulated_culprit(evidence, layer)
    return None


def wrong_places(measured: Sequence[Measured], row: int, places: Sequence[str]) -> list[str]:
    """The places of a row at which the tolerance is exceeded."""
    shares = worst_shares(measured)[row]
    return [place for place, x in zip(places, shares, strict=True) if x is not None and x > 1]


def spell_places(wrong: Sequence[str], places: Sequence[str]) -> str:
    """Places in words: everywhere, one place, from one on, or a list."""
    if list(wrong) == list(places):
        return "everywhere"
    if len(wrong) == 1:
        return f"at {wrong[0]} alone" if wrong[0].startswith("frame") else f"in {wrong[0]} alone"
    if list(wrong) == list(places[places.index(wrong[0]) :]):
        return f"from {wrong[0]} on"
    frames = [x for x in places if x.startswith("frame")]
    if list(wrong) == frames:
        return "inside all frames"
    return "at " + ", ".join(wrong)


def _worst(measured: Sequence[Measured], row: int) -> float:
    return max((x for x in worst_shares(measured)[row] if x is not None), default=0.0)


def _outside(
    evidence: Evidence, measured: Sequence[Measured], who: str, found: WrongNode | None
) -> Culprit:
    """A culprit that is no layer of the decoder."""
    wrong = wrong_places(measured, 0, evidence.places)
    tensor, node, pattern = measured[0].quantity, "", Pattern(OTHER, "wrong")
    if found is not None:
        tensor, node = found.point.tensor, found.node
        pattern = recognise_module(found.seen, tensor)
    where = spell_places(wrong, evidence.places)
    return Culprit(
        layer=who,
        place=wrong[0],
        node=node,
        tensor=tensor,
        pattern=pattern.name,
        words=f"{who}, {where}, {tensor}: {pattern.words}: {pattern.name}",
        share=_worst(measured, 0),
    )


def _accumulated_culprit(evidence: Evidence, layer: int) -> Culprit:
    wrong = wrong_places(evidence.accumulated, layer, evidence.places)
    return Culprit(
        layer=layer,
        place=wrong[0],
        node="",
        tensor="hidden states",
        pattern=ACCUMULATED,
        words=f"layer {layer}, {spell_places(wrong, evidence.places)}: every layer is right by "
        "itself, and what they hand on adds up to more than PyTorch's own noise",
        share=_worst(evidence.accumulated, layer),
    )


def _layer_culprit(judges: Judges, evidence: Evidence, layer: int) -> Culprit:
    """Look into the first layer that errs by itself."""
    arithmetic = _clearest(judges, evidence.isolated, layer)
    given = list(zip(evidence.sequences, evidence.inputs, strict=True))
    part = evidence.layers[layer]
    found = find_wrong_node(judges, arithmetic, part, layer, given)
    wrong = wrong_places(evidence.isolated, layer, evidence.places)
    where = spell_places(wrong, evidence.places)
    if found is None:
        node, tensor, pattern = "", RESULT, Pattern(OTHER, "no single tensor is out of tolerance")
    else:
        tensor, pattern = found.point.tensor, recognise(found.seen, found.point.tensor)
        node = _exact_node(part, layer, found, pattern)
    also = [x for x in range(layer + 1, len(evidence.layers)) if _worst(evidence.isolated, x) > 1]
    words = f"layer {layer}, {where}, {tensor}: {pattern.words}: {pattern.name}"
    if also:
        count = len(also) + 1
        others = "all layers" if count == len(evidence.layers) else f"{count} layers"
        words += f" ({others} err by themselves)"
    return Culprit(
        layer=layer,
        place=wrong[0],
        node=node,
        tensor=tensor,
        pattern=pattern.name,
        words=words,
        share=_worst(evidence.isolated, layer),
    )


def recognise(seen: Seen, tensor: str) -> Pattern:
    """The pattern that the first wrong tensor of a layer shows."""
    common = _general_pattern(seen, tensor)
    if common is not None:
        return common
    if tensor in (after_rotation(QUERIES), after_rotation(KEYS)):
        return rotation_pattern(seen, tensor)
    for what in (KEYS, VALUES):
        if tensor in (cache_rows(what), into_attention(what)):
            return cache_pattern(seen, tensor, what)
    if tensor in (f"output of {ATTENTION}", input_of("self_attn.o_proj")):
        return attention_pattern(seen, tensor)
    if tensor == PRODUCT:
        return activation_pattern(seen, tensor)
    if tensor == FIRST_SUM:
        return sum_pattern(seen, tensor, (input_of("input_layernorm"), "self_attn.o_proj"))
    if tensor == RESULT:
        return sum_pattern(seen, tensor, (FIRST_SUM, "mlp.down_proj"))
    if tensor.endswith("layernorm"):
        return norm_pattern(seen, tensor)
    return linear_pattern(seen, tensor)


def _general_pattern(seen: Seen, tensor: str) -> Pattern | None:
    """What any tensor may suffer from."""
    if not np.isfinite(seen.engine[tensor].astype(np.float64)).all():
        return Pattern(OVERFLOW, "not a finite number, though the truth is")
    return rounding_pattern(seen, tensor)


def _exact_node(part: ir.Model, layer: int, found: WrongNode, pattern: Pattern) -> str:
    """The node to blame; an epsilon is added by a node inside the norm."""
    if pattern.name == NORM_EPSILON:
        graph = PartGraph(part.graph, f"decoder.layers.{layer}")
        nodes = graph.computed_nodes(found.point.tensor)
        return next((str(x.name) for x in nodes if x.op_type == "Add"), found.node)
    return found.node


def recognise_module(seen: Seen, tensor: str) -> Pattern:
    """The pattern that the first wrong tensor of the vision graph or of the head shows."""
    common = _general_pattern(seen, tensor)
    if common is not None:
        return common
    if tensor == "norm":
        return norm_pattern(seen, tensor)
    if tensor.startswith("input of "):
        return _between_modules(seen, tensor.removeprefix("input of "), tensor)
    if "norm" in tensor:
        return norm_pattern(seen, tensor, centred=True)
    if tensor == VISUAL_FEATURES:
        return Pattern(POOLING, "its input is right")
    return linear_pattern(seen, tensor)


def _between_modules(seen: Seen, module: str, tensor: str) -> Pattern:
    """What is wrong where it enters a module, though the modules before it are right."""
    what = spell_share(seen, tensor)
    if module.endswith(("fc2", "linear_2")):
        return Pattern(ACTIVATION, f"{what} of the patches, its input right")
    if module.endswith("out_proj"):
        return Pattern(ATTENTION_OUTPUT, f"{what} of the patches, its inputs right")
    if module.endswith("linear_1"):
        return Pattern(SELECTION, f"{what} of the patches, the tower's result right")
    return Pattern(SUM, f"{what} of the patches, its parts right")


def _clearest(judges: Judges, measured: Sequence[Measured], row: int) -> Arithmetic:
    """The arithmetic to look closer with: without rounding, where the fault shows there."""
    for arithmetic in reversed(judges.arithmetics):
        own = [x for x in measured if x.arithmetic == arithmetic.dtype]
        if _worst(own, row) > 1:
            return arithmetic
    return judges.own
