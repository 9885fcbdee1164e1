# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs in ONNX Runtime, in their own formats: what can be compared without the device.

An engine that was built for another device cannot run here. Its graphs can: they have the engine's
operators, weights and number formats, but not its kernels. A decoder that does not fit into memory
is opened part by part: all calls go through one part before the next is opened.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tc_export.bundle.layout import graph_path
from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import DECODER, INPUTS_EMBEDS, LOGITS, VISION, is_hidden
from tc_export.contracts.parts import Part
from tc_export.dtypes import DType
from tc_export.engine.interface import Engine
from tc_export.engine.loading import Engines
from tc_export.graph.parts import cut_decoder
from tc_export.parity.graph_opener import GraphOpener
from tc_export.parity.tensors.sides import EngineCalls, Feed, cache_for, features_of
from tc_export.targets import Precision, Precisions

FLOAT16, FLOAT32 = DType.FLOAT16.numpy, DType.FLOAT32.numpy


def load_graphs(folder: Path, precisions: Precisions, *, threads: int | None = None) -> Engines:
    """Load both graphs under `folder`, whole and without our native library.

    Raises:
        BundleError: a graph cannot be loaded.
    """
    return Engines(
        vision=_opener(folder, VISION, precisions, threads=threads).open(),
        decoder=_opener(folder, DECODER, precisions, threads=threads).open(),
    )


def _opener(
    folder: Path,
    graph: str,
    precisions: Precisions,
    *,
    in_float32: bool = False,
    threads: int | None = None,
) -> GraphOpener:
    precision: Precision = getattr(precisions, graph)
    return GraphOpener(
        path=folder / graph_path(graph),
        dtype=precision.dtype,
        unrounded=in_float32,
        inputs_as_they_are=in_float32,
        threads=threads,
    )


class GraphsInTurn:
    """Both graphs as a side of a comparison; no more of them is open at once than one part.

    Attributes:
        name: as a person reads it.
        pixel_type, embeds_type: what the graphs are fed with.
        takes_batches: True, since a graph has no fixed batch.
    """

    takes_batches = True

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        precisions: Precisions,
        parts: Sequence[Part],
        *,
        in_float32: bool = False,
        threads: int | None = None,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Open nothing yet.

        Args:
            folder: where graphs/ lies.
            config: the model's.
            precisions: formats of the graphs.
            parts: of the decoder, as it fits into memory.
            in_float32: compute 16-bit graphs in float32, and round nothing but weights.
            threads: CPU threads.
            advance: called with the parts that are done, and all there are.
        """
        self._config = config
        self._parts = tuple(parts)
        self._vision, self._decoder = (
            _opener(folder, graph, precisions, in_float32=in_float32, threads=threads)
            for graph in (VISION, DECODER)
        )
        self._advance = advance
        cut = f", in {len(self._parts)} parts" if len(self._parts) > 1 else ""
        self.name = f"graphs in ONNX Runtime{cut}"
        # A bfloat16 graph is computed in float32.
        self.pixel_type, self.embeds_type = (
            FLOAT16 if precision is Precision.FLOAT16 and not in_float32 else FLOAT32
            for precision in (precisions.vision, precisions.decoder)
        )

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Side.features`."""
        return features_of(self._vision.open(), clips)

    def logits(self, calls: Sequence[EngineCalls]) -> list[list[np.ndarray]]:
        """See `JudgedSide.logits`."""
        hidden = [[feed[INPUTS_EMBEDS] for feed in x.feeds] for x in calls]
        whole = len(self._parts) == 1
        models = [None] if whole else cut_decoder(self._decoder.path, self._config, self._parts)
        for index, model in enumerate(models):
            engine = self._decoder.open(model)
            hidden = [_through(engine, x, given) for x, given in zip(calls, hidden, strict=True)]
            del engine
            gc.collect()  # before the next part's weights are read
            self._advance(index + 1, len(self._parts))
        return [[logits.reshape(-1, logits.shape[-1]) for logits in x] for x in hidden]


def _through(engine: Engine, calls: EngineCalls, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What one part makes of each call's hidden states; the last part makes logits."""
    taken = next(x for x in engine.inputs if is_hidden(x) or x == INPUTS_EMBEDS)
    given = next(x for x in engine.outputs if is_hidden(x) or x == LOGITS)
    cache = cache_for(engine, calls)

    def run(feed: Feed, states: np.ndarray) -> np.ndarray:
        wanted = {name: values for name, values in feed.items() if name in engine.inputs}
        return engine.run(wanted | {taken: states}, cache)[given]

    return [run(feed, states) for feed, states in zip(calls.feeds, hidden, strict=True)]
