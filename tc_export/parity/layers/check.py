# SPDX-License-Identifier: Apache-2.0
"""Layer by layer: each layer's graph against PyTorch, fed with the truth, and with its own past.

*Isolated*: a layer is fed with the truth, rounded to the graph's format, and judged by what PyTorch
in float64 makes of those same numbers with weights rounded as the graph's are. Its error is that
layer's alone. A 16-bit graph is judged twice: in its own arithmetic, and in float32 arithmetic,
where a small fault is not hidden by the format's noise.

*Accumulated*: a layer is fed with what the graph's own layers made before, and judged by the whole
model in float64. At a place the median token counts: of real weights some tokens are
ill-conditioned, and PyTorch's own draws part there by orders of magnitude.

Axes: S tokens, E channels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tc_export.config import ModelConfig
from tc_export.dtypes import DType, round_to
from tc_export.engine.interface import Engine
from tc_export.parity.graph_opener import GraphOpener
from tc_export.parity.layers.cells import Cells
from tc_export.parity.layers.part import PartOutput, run_head, run_layer
from tc_export.parity.layers.result import HIDDEN_STATES, KEYS, VALUES
from tc_export.parity.layers.sequences import LayerSequence
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.noise import PLAIN, Draw
from tc_export.parity.sequences import LayerOutput, TokenSequence

Advance = Callable[[str, int, int], None]
"""Called with what is done, and with how many steps are done, of how many."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """One way to compute the graph, and PyTorch in the same format to measure its noise by.

    Attributes:
        dtype: what results are rounded to.
        opener: opens the graph so.
        model: PyTorch in that format, with the graph's weights.
    """

    dtype: DType
    opener: GraphOpener
    model: LayerwiseModel


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Everything that a graph is judged by.

    Attributes:
        truth: float64.
        rounded: float64, with weights rounded to the graph's format.
        own: the graph's own format.
        unrounded: float32 arithmetic of a 16-bit graph; None where the graph is float32.
        format: of the decoder's graph.
    """

    truth: LayerwiseModel
    rounded: LayerwiseModel
    own: Arithmetic
    unrounded: Arithmetic | None
    format: DType

    @property
    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The graph's own first."""
        return (self.own,) if self.unrounded is None else (self.own, self.unrounded)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """All cells of a sweep, and the truth's hidden states where somebody will look closer.

    `suspect` is the first layer that errs by itself. `inputs[sequence]` [S, E] is what entered it,
    and `last` what leaves the last layer, both rounded to the graph's format.
    """

    isolated: dict[str, Cells]
    accumulated: Cells
    suspect: int | None
    inputs: list[np.ndarray]
    last: list[np.ndarray]


class Sweep:
    """The layers of one decoder graph, in order."""

    def __init__(
        self,
        judges: Judges,
        layers: Sequence[ir.Model],
        sequences: Sequence[LayerSequence],
        places: Sequence[str],
        advance: Advance,
    ) -> None:
        self._judges = judges
        self._layers = layers
        self._sequences = sequences
        self._advance = advance
        self._config: ModelConfig = judges.truth.config
        rows, names = len(layers), [str(x.dtype) for x in judges.arithmetics]
        self._isolated = {name: Cells(rows, places, name) for name in names}
        self._accumulated = Cells(rows, places, names[0], median=True)

    def run(self, embeds: Sequence[np.ndarray]) -> Swept:
        """Take embeddings [S, E] of each sequence, in float64, through all layers."""
        dtype = self._judges.format
        start = [round_to(x, dtype) for x in embeds]
        truth, engine = start, start
        draws = [start, [moved(x, dtype, seed) for seed, x in enumerate(start)]]
        suspect, suspect_inputs = None, []
        for index in range(len(self._layers)):
            inputs = [round_to(x, dtype) for x in truth]
            with_truth = self._ask(self._judges.truth, index, truth)
            for arithmetic in self._judges.arithmetics:
                engine = self._layer(index, arithmetic, inputs, engine, with_truth, draws)
            truth = [x.hidden for x in with_truth]
            if suspect is None and any(x.worst(index) > 1 for x in self._isolated.values()):
                suspect, suspect_inputs = index, inputs
            self._advance(f"layer {index}", index + 1, len(self._layers))
        return Swept(
            isolated=self._isolated,
            accumulated=self._accumulated,
            suspect=suspect,
            inputs=suspect_inputs,
            last=[round_to(x, dtype) for x in truth],
        )

    def _layer(
        self,
        index: int,
        arithmetic: Arithmetic,
        inputs: Sequence[np.ndarray],
        engine: list[np.ndarray],
        truth: Sequence[LayerOutput],
        draws: list[list[np.ndarray]],
    ) -> list[np.ndarray]:
        """Judge one layer in one arithmetic; return what the graph's own layers made so far.

        `draws` are PyTorch's hidden states in the graph's format, and are moved on.
        """
        exact = self._ask(self._judges.rounded, index, inputs)
        noisy = [inputs, [moved(x, arithmetic.dtype, seed) for seed, x in enumerate(inputs)]]
        pytorch = self._draws(arithmetic.model, index, noisy)
        opened = arithmetic.opener.open(self._layers[index])
        found = self._run(opened, inputs)
        self._compare(self._isolated[str(arithmetic.dtype)], index, exact, pytorch, found)
        if arithmetic is self._judges.own:
            past = self._draws(arithmetic.model, index, draws)
            draws[:] = [[x.hidden for x in draw] for draw in past]
            made = self._run(opened, engine)
            self._compare(self._accumulated, index, truth, past, made)
            engine = [x.hidden for x in made]
        del opened
        gc.collect()  # before the next layer's weights are read
        return engine

    def _run(self, engine: Engine, hidden: Sequence[np.ndarray]) -> list[PartOutput]:
        return [
            run_layer(engine, self._config, sequence, x)
            for sequence, x in zip(self._sequences, hidden, strict=True)
        ]

    def _ask(
        self,
        model: LayerwiseModel,
        index: int,
        hidden: Sequence[np.ndarray],
        draw: Draw = PLAIN[0],
    ) -> list[LayerOutput]:
        return model.layer(index, as_token_sequences(self._sequences, hidden), draw=draw)

    def _draws(
        self, model: LayerwiseModel, index: int, hidden: Sequence[Sequence[np.ndarray]]
    ) -> list[list[LayerOutput]]:
        """What a layer makes of each draw's hidden states."""
        return [self._ask(model, index, x, Draw(number)) for number, x in enumerate(hidden)]

    def _compare(
        self,
        cells: Cells,
        index: int,
        truth: Sequence[LayerOutput],
        draws: Sequence[Sequence[LayerOutput]],
        found: Sequence[PartOutput],
    ) -> None:
        for place, sequence in enumerate(self._sequences):
            true, pytorch, engine = truth[place], [x[place] for x in draws], found[place]
            for quantity, correct, noise, values in (
                (HIDDEN_STATES, true.hidden, [x.hidden for x in pytorch], (engine.hidden,)),
                (KEYS, true.keys, [x.keys for x in pytorch], engine.keys),
                (VALUES, true.values, [x.values for x in pytorch], engine.values),
            ):
                cells.add(quantity, index, sequence.labels, correct, noise, values)


def judge_head(
    judges: Judges,
    head: ir.Model,
    sequences: Sequence[LayerSequence],
    places: Sequence[str],
    hidden: Sequence[np.ndarray],
) -> list[Cells]:
    """Logits of wanted tokens, from the truth's last hidden states [S, E], in each arithmetic."""
    wanted = [np.concatenate([x.wanted(span) for span in x.spans]) for x in sequences]

    def ask(model: LayerwiseModel, states: Sequence[np.ndarray]) -> list[np.ndarray]:
        return model.head([x[rows] for x, rows in zip(states, wanted, strict=True)])

    truth = ask(judges.rounded, hidden)
    judged = []
    for arithmetic in judges.arithmetics:
        cells = Cells(1, places, str(arithmetic.dtype))
        shaken = [moved(x, arithmetic.dtype, seed) for seed, x in enumerate(hidden)]
        draws = [ask(arithmetic.model, hidden), ask(arithmetic.model, shaken)]
        engine = arithmetic.opener.open(head)
        for index, sequence in enumerate(sequences):
            labels = [sequence.labels[row] for row in wanted[index]]
            found = run_head(engine, sequence, hidden[index])
            noise = [draw[index] for draw in draws]
            cells.add("logits", 0, labels, truth[index], noise, (found,))
        judged.append(cells)
    return judged


def as_token_sequences(
    sequences: Sequence[LayerSequence], hidden: Sequence[np.ndarray]
) -> list[TokenSequence]:
    """What the layerwise model takes: hidden states [S, E] with their layouts."""
    return [
        TokenSequence(embeds=x, layout=sequence.layout, logits_indices=np.empty(0, dtype=np.int64))
        for sequence, x in zip(sequences, hidden, strict=True)
    ]


def moved(x: np.ndarray, dtype: DType, seed: int) -> np.ndarray:
    """The values, each moved by about one unit in the last place of `dtype`, up or down."""
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), x.shape)
    return round_to(x.astype(np.float64) * (1.0 + signs * dtype.epsilon), dtype)
