# SPDX-License-Identifier: Apache-2.0
"""Inside the one layer that is to blame: the first tensor that is wrong, and the node it is of.

Axes: S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tc_export.config import ModelConfig
from tc_export.model.positions import Layout
from tc_export.parity.layers.check import Arithmetic, Judges, as_token_sequences, moved
from tc_export.parity.layers.part import PartOutput, add_outputs, run_layer
from tc_export.parity.layers.points import MOVEMENTS, PartGraph, Point
from tc_export.parity.layers.recorder import KEYS, RESULT, VALUES, Recorder, cache_rows
from tc_export.parity.layers.sequences import LayerSequence
from tc_export.parity.layers.tolerance import Floats, token_errors, token_tolerances
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.noise import PLAIN, Draw


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All tensors of one layer for one sequence, on both sides.

    Attributes:
        config, layout: of the model and of the sequence.
        head_dim: channels of a head.
        truth, engine: tensors [S, ...] by their name in PyTorch's terms.
        shares: errors of tokens [S] as shares of the tolerance, by the same names.
    """

    config: ModelConfig
    layout: Layout
    head_dim: int
    truth: dict[str, np.ndarray]
    engine: dict[str, np.ndarray]
    shares: dict[str, Floats]

    def wrong(self, tensor: str) -> np.ndarray:
        """Tokens [S] at which a tensor is wrong."""
        found: np.ndarray = self.shares[tensor] > 1.0
        return found


@dataclass(frozen=True, kw_only=True)
class WrongNode:
    """The first wrong tensor, the ONNX node to blame for it, and everything that was seen."""

    point: Point
    node: str
    seen: Seen


def find_wrong_node(
    judges: Judges,
    arithmetic: Arithmetic,
    part: ir.Model,
    layer: int,
    sequences: Sequence[tuple[LayerSequence, np.ndarray]],
) -> WrongNode | None:
    """Look for the first wrong tensor of a layer; None where each is within its tolerance.

    `sequences` come with the hidden states [S, E] that enter the layer. The part gets outputs.
    """
    graph = PartGraph(part.graph, f"decoder.layers.{layer}")
    points = graph.points()
    add_outputs(part, [x.value for x in points if x.value.producer() is not None])
    engine = arithmetic.opener.open(part)
    found = []
    for sequence, hidden in sequences:
        output = run_layer(engine, judges.truth.config, sequence, hidden)
        seen = _see(judges, arithmetic, layer, points, (sequence, hidden), output)
        wrong = first_wrong(points, seen)
        if wrong is not None:
            found.append(wrong)
    return min(found, key=lambda x: graph.place(x.point.value), default=None)


def first_wrong(points: Sequence[Point], seen: Seen) -> WrongNode | None:
    """The first point at which a tensor is wrong, and the node to blame."""
    compared = [x for x in points if x.tensor in seen.shares]
    wrong = next((x for x in compared if seen.wrong(x.tensor).any()), None)
    if wrong is None:
        return None
    right = {x.value for x in compared if not seen.wrong(x.tensor).any()}
    return WrongNode(point=wrong, node=blame(wrong.value, right), seen=seen)


def error_shares(
    truth: np.ndarray, draws: Sequence[np.ndarray], views: Sequence[np.ndarray], epsilon: float
) -> Floats:
    """The worst error of several views of a tensor [S, ...] as shares [S] of its tolerance."""
    tolerances = token_tolerances(truth, draws, epsilon)
    errors = np.max([token_errors(x, truth) for x in views], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(errors > 0, errors / tolerances, 0.0)
    return np.nan_to_num(shares, nan=np.inf, posinf=np.inf)


def _see(
    judges: Judges,
    arithmetic: Arithmetic,
    layer: int,
    points: Sequence[Point],
    given: tuple[LayerSequence, np.ndarray],
    output: PartOutput,
) -> Seen:
    sequence, hidden = given
    truth = _record(judges.rounded, layer, sequence, hidden)
    draws = [
        _record(arithmetic.model, layer, sequence, x, Draw(number))
        for number, x in enumerate((hidden, moved(hidden, arithmetic.dtype, 0)))
    ]
    engine, shares = {}, {}
    for point in points:
        name = point.tensor
        views = _views(point, output, truth.get(name))
        if not views:
            continue
        noise = [x[name] for x in draws]
        shares[name] = error_shares(truth[name], noise, views, arithmetic.dtype.epsilon)
        engine[name] = max(views, key=lambda x: float(token_errors(x, truth[name]).max()))
    return Seen(
        config=judges.truth.config,
        layout=sequence.layout,
        head_dim=judges.truth.config.text.head_dim,
        truth=truth,
        engine=engine,
        shares=shares,
    )


def _views(point: Point, output: PartOutput, truth: np.ndarray | None) -> list[np.ndarray]:
    """What the graph says of a point, in the shape of the truth; cache rows are seen twice."""
    if truth is None:
        return []
    if point.tensor == cache_rows(KEYS):
        return list(output.keys)
    if point.tensor == cache_rows(VALUES):
        return list(output.values)
    if point.tensor == RESULT:
        return [output.hidden]
    calls = output.tensors.get(str(point.value.name))
    if calls is None:
        return []  # an input
    found = point.array(calls, truth)
    return [found] if found.shape == truth.shape else []


def _record(
    model: LayerwiseModel,
    layer: int,
    sequence: LayerSequence,
    hidden: np.ndarray,
    draw: Draw = PLAIN[0],
) -> dict[str, np.ndarray]:
    recorder = Recorder(model.config.text.head_dim)
    (out,) = model.layer(layer, as_token_sequences([sequence], [hidden]), recorder.watch, draw)
    tensors = recorder.tensors()
    tensors[cache_rows(KEYS)], tensors[cache_rows(VALUES)] = out.keys, out.values
    return tensors


def blame(value: ir.Value, right: set[ir.Value]) -> str:
    """The name of the node that made a wrong value; nodes that only move numbers are passed by.

    Where there are only such between a right value and the wrong one, the last of them is it.
    """
    last = node = value.producer()
    while node is not None and node.op_type in MOVEMENTS:
        source = node.inputs[0]
        if source is None or source in right or source.producer() is None:
            return str(last.name if last is not None else value.name)
        node = source.producer()
    return str(value.name if node is None else node.name)
