# SPDX-License-Identifier: Apache-2.0
"""One layer of a decoder's graph in ONNX Runtime, with a whole sequence taken through it.

Axes: S tokens of the sequence, E channels, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    SCALE,
    is_hidden,
)
from tc_export.engine.interface import Engine
from tc_export.engine.kv_cache import KvCache
from tc_export.parity.layers.sequences import LayerSequence


@dataclass(frozen=True, kw_only=True)
class PartOutput:
    """What a layer's graph made of a sequence.

    Attributes:
        hidden: [S, E].
        keys, values: cache rows [S, K, D], as they stood right after the call that wrote them, and
            as they stood at the end.
        tensors: whatever else the graph hands out, each call's by itself, by name.
    """

    hidden: np.ndarray
    keys: tuple[np.ndarray, np.ndarray]
    values: tuple[np.ndarray, np.ndarray]
    tensors: dict[str, list[np.ndarray]]


def run_layer(
    engine: Engine, config: ModelConfig, sequence: LayerSequence, hidden: np.ndarray
) -> PartOutput:
    """Take hidden states [S, E] through a layer's graph, call by call, with an empty cache."""
    taken = next(x for x in engine.inputs if is_hidden(x) or x == INPUTS_EMBEDS)
    given = next(x for x in engine.outputs if is_hidden(x))
    cache = engine.new_cache(sequence.length)
    outputs: dict[str, list[np.ndarray]] = {}
    written: dict[str, list[np.ndarray]] = {"key": [], "value": []}
    for (start, stop), feed in sequence.feeds(config):
        feed = {name: values for name, values in feed.items() if name in engine.inputs}
        states = hidden[None, start:stop].astype(engine.inputs[taken].dtype)
        for name, found in engine.run(feed | {taken: states}, cache).items():
            outputs.setdefault(name, []).append(found)
        for part, rows in _rows(cache).items():
            written[part].append(rows[start:stop])
    kept = _rows(cache)
    states = np.concatenate([x[0] for x in outputs.pop(given)])
    return PartOutput(
        hidden=states,
        keys=(np.concatenate(written["key"]), kept["key"]),
        values=(np.concatenate(written["value"]), kept["value"]),
        tensors=outputs,
    )


def run_head(engine: Engine, sequence: LayerSequence, hidden: np.ndarray) -> np.ndarray:
    """Logits [wanted, V] of all calls, from hidden states [S, E]."""
    taken = next(x for x in engine.inputs if is_hidden(x))
    logits = []
    for span in sequence.spans:
        feed = {
            taken: hidden[None, slice(*span)].astype(engine.inputs[taken].dtype),
            LOGITS_INDICES: (sequence.wanted(span) - span[0])[None],
        }
        logits.append(engine.run(feed)[LOGITS][0])
    return np.concatenate(logits)


def add_outputs(part: ir.Model, values: Sequence[ir.Value]) -> None:
    """Let a part hand out more values; those that it hands out already are left alone."""
    known = {value.name for value in part.graph.outputs}
    for value in values:
        if value.name not in known:
            known.add(value.name)
            part.graph.outputs.append(value)


def _rows(cache: KvCache) -> dict[str, np.ndarray]:
    """Keys and values of the one layer's cache as [C, K, D], in floating point."""
    parts = {
        name.split(".")[-1]: buffer.numpy()[0].swapaxes(0, 1)
        for name, buffer in cache.buffers.items()
    }
    return {
        name: rows * parts[f"{name}{SCALE}"][..., None] if f"{name}{SCALE}" in parts else rows
        for name, rows in parts.items()
        if not name.endswith(SCALE)
    }
