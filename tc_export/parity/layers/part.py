# SPDX-License-Identifier: Apache-2.0
"""One layer of a decoder's graph in ONNX Runtime, with a whole sequence taken through it.

Axes: S tokens of the sequence, E channels, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    is_hidden,
)
from tc_export.dtypes import DType
from tc_export.engine.interface import Engine
from tc_export.engine.kv_cache import KvCache
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.graph.passes.float32_arithmetic import compute_in_float32
from tc_export.parity.layers.sequences import LayerSequence


@dataclass(frozen=True, kw_only=True)
class GraphOpener:
    """Opens parts of the decoder graph that lies at `path`.

    Attributes:
        path: of the whole graph; weights lie beside it.
        dtype: the graph's format.
        unrounded: compute 16-bit graphs in float32 without rounding.
        native_library: serves the custom ops; None leaves them to their functions.
        threads: of the CPU; None is one for each core.
    """

    path: Path
    dtype: DType
    unrounded: bool = False
    native_library: Path | None = None
    threads: int | None = None

    def open(self, part: ir.Model | None = None) -> OrtEngine:
        """Open a part, or the whole graph.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        proto = (
            onnx.load(self.path, load_external_data=False) if part is None else ir.to_proto(part)
        )
        inlined = (
            compute_in_float32(proto, self.dtype, rounded=False)
            if self.unrounded
            else compute_in_float32(proto)
        )
        return OrtEngine(
            self.path,
            rewritten=proto.SerializeToString(),
            # A graph whose functions were put in place has no op left to serve.
            native_library=None if inlined else self.native_library,
            threads=self.threads,
        )


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
    """Each part of the one layer's cache as [C, K, D]."""
    return {
        name.split(".")[-1]: buffer.numpy()[0].swapaxes(0, 1)
        for name, buffer in cache.buffers.items()
    }
