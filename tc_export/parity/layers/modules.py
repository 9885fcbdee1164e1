# SPDX-License-Identifier: Apache-2.0
"""Where the vision graph, or the head, first computes something else: module by module.

Of the vision graph first what enters each layer is compared, and then, in the first wrong layer,
everything: a whole tower's tensors would not fit into memory.

Axes: F frames, P patches, E channels, N rows (patches of all frames, or tokens).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tc_export.contracts.graph_io import (
    LOGITS_INDICES,
    PIXEL_VALUES,
    VISUAL_FEATURES,
    hidden_name,
)
from tc_export.dtypes import round_to
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.parity.layers.check import Arithmetic, Judges, moved
from tc_export.parity.layers.nodes import Seen, WrongNode, error_shares, first_wrong
from tc_export.parity.layers.part import add_outputs
from tc_export.parity.layers.points import PartGraph, Point
from tc_export.parity.layers.recorder import input_of
from tc_export.parity.layers.sequences import LayerSequence
from tc_export.parity.layerwise import LayerwiseModel, Watch

FRAMES = 2
"""Of a sequence that are looked into."""

_ENTERS_LAYER = re.compile(r"input of vision_tower\.layers\.(\d+)\.layer_norm1")

Tensors = dict[str, np.ndarray]
Wanted = Callable[[str], bool]


class ModuleRecorder:
    """Keeps the inputs and outputs of the smallest modules whose names are wanted."""

    def __init__(self, prefix: str, wanted: Wanted) -> None:
        self._prefix = f"{prefix}."
        self._wanted = wanted
        self._kept: dict[str, list[Tensor]] = {}

    def watch(self, title: str, module: nn.Module) -> None:
        """Hang hooks on a part of the model."""
        for below, part in module.named_modules():
            if next(part.children(), None) is None:
                whole = f"{title}.{below}" if below else title
                part.register_forward_hook(self._hook(whole.removeprefix(self._prefix)))

    def tensors(self) -> Tensors:
        """Everything that was kept, as [N, E], by name."""
        return {name: torch.cat(calls).numpy() for name, calls in self._kept.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            self._keep(input_of(name), given[0])
            self._keep(name, made)

        return hook

    def _keep(self, name: str, tensor: Tensor) -> None:
        if self._wanted(name):
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            self._kept.setdefault(name, []).append(torch.from_numpy(rows_of(wide.numpy())))


def rows_of(x: np.ndarray) -> np.ndarray:
    """[F, P, E] or [F, E, height, width] as [N, E]."""
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A graph that is looked into, and how both sides are asked.

    Attributes:
        part: the graph; it gets outputs.
        prefix: the module that it is of.
        ask: PyTorch's result [N, E] for an input, while modules are watched.
        run: all outputs of the graph for the same input.
        result: the name of its own output.
        head_dim: channels of a head.
    """

    part: ir.Model
    prefix: str
    ask: Callable[[LayerwiseModel, np.ndarray, Watch], np.ndarray]
    run: Callable[[OrtEngine, np.ndarray], dict[str, np.ndarray]]
    result: str
    head_dim: int


def find_wrong_vision_node(
    judges: Judges, arithmetic: Arithmetic, sequence: LayerSequence
) -> WrongNode | None:
    """Look for the first wrong tensor of the vision graph; None where each is within tolerance."""
    vision = judges.truth.config.vision
    subject = Subject(
        part=ir.load(arithmetic.opener.path),
        prefix="vision",
        ask=lambda model, pixels, watch: rows_of(model.features([pixels], watch)[0]),
        run=lambda engine, pixels: engine.run({PIXEL_VALUES: pixels}),
        result=VISUAL_FEATURES,
        head_dim=vision.hidden_size // vision.num_attention_heads,
    )
    pixels = round_to(sequence.pixel_values[:FRAMES], judges.format)
    coarse = _look(judges, arithmetic, subject, sequence, pixels, _is_coarse)
    if coarse is None:
        return None
    modules = _made_by(coarse.point.tensor, vision.layers_used)
    fine = None
    if modules:
        wanted = re.compile(f"(input of )?vision_tower.({'|'.join(modules)})(\\.|$)").match
        fine = _look(judges, arithmetic, subject, sequence, pixels, lambda x: wanted(x) is not None)
    # What leaves the graph is wrong in any case, and says nothing of the layer.
    return coarse if fine is None or fine.point.tensor == VISUAL_FEATURES else fine


def find_wrong_head_node(
    judges: Judges, arithmetic: Arithmetic, head: ir.Model, sequence: LayerSequence, x: np.ndarray
) -> WrongNode | None:
    """Look for the first wrong tensor of the last norm and the head, from hidden states [S, E]."""
    taken = hidden_name(judges.truth.config.text.num_hidden_layers)
    subject = Subject(
        part=head,
        prefix="decoder",
        ask=lambda model, states, watch: model.head([states], watch)[0],
        run=lambda engine, states: engine.run(
            {taken: states[None], LOGITS_INDICES: np.arange(len(states))[None]}
        ),
        result="lm_head",
        head_dim=judges.truth.config.text.head_dim,
    )
    wanted = np.concatenate([sequence.wanted(span) for span in sequence.spans])
    return _look(judges, arithmetic, subject, sequence, x[wanted], lambda name: True)


def _look(
    judges: Judges,
    arithmetic: Arithmetic,
    subject: Subject,
    sequence: LayerSequence,
    given: np.ndarray,
    wanted: Wanted,
) -> WrongNode | None:
    """Compare the wanted tensors; return the first that is wrong."""
    points = PartGraph(subject.part.graph, subject.prefix).points(wanted)
    points += [_result(subject)]
    add_outputs(subject.part, [x.value for x in points if x.value.producer() is not None])
    engine = arithmetic.opener.open(subject.part)
    taken = next(iter(engine.inputs.values())).dtype
    outputs = subject.run(engine, given.astype(taken))
    truth = _record(judges.rounded, subject, given, wanted)
    shaken = moved(given, arithmetic.dtype, 0)
    draws = [_record(arithmetic.model, subject, x, wanted) for x in (given, shaken)]
    values, shares = {}, {}
    for point in points:
        name = point.tensor
        made = outputs.get(str(point.value.name))
        found = None if made is None else rows_of(made)
        if found is None or name not in truth or found.shape != truth[name].shape:
            continue
        values[name] = found
        noise = [x[name] for x in draws]
        shares[name] = error_shares(truth[name], noise, [found], arithmetic.dtype.epsilon)
    seen = Seen(
        config=judges.truth.config,
        layout=sequence.layout,
        head_dim=subject.head_dim,
        truth=truth,
        engine=values,
        shares=shares,
    )
    return first_wrong(points, seen)


def _result(subject: Subject) -> Point:
    """The graph's own output."""
    return Point(tensor=subject.result, value=subject.part.graph.outputs[0])


def _record(model: LayerwiseModel, subject: Subject, given: np.ndarray, wanted: Wanted) -> Tensors:
    recorder = ModuleRecorder(subject.prefix, wanted)
    result = subject.ask(model, given, recorder.watch)
    return recorder.tensors() | {subject.result: result}


def _is_coarse(name: str) -> bool:
    return _ENTERS_LAYER.fullmatch(name) is not None or "multi_modal_projector" in name


def _made_by(tensor: str, layers: int) -> list[str]:
    """The tower's modules that a tensor between layers is made by; none for the projector's own."""
    if tensor == input_of("multi_modal_projector.linear_1"):
        return [rf"layers\.{layers - 1}"]
    found = _ENTERS_LAYER.fullmatch(tensor)
    if found is None:
        return []
    layer = int(found[1])
    return [rf"layers\.{layer - 1}"] if layer else ["embeddings", "pre_layernorm"]
