# SPDX-License-Identifier: Apache-2.0
"""What a comparison layer by layer found, as plain data: for tables, reports and JSON.

Errors are of every layer (rows) and place (columns). A place is the text before the frames, a
frame, text between frames, the text after them, or the generated tokens. Sequences that have a
place in common share its column, and the worst of them counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite

Grid = tuple[tuple[float | None, ...], ...]
"""A number for each layer and place; None where a place does not have it."""

HIDDEN_STATES, KEYS, VALUES = "hidden states", "keys", "values"
"""What is compared of a layer: what leaves it, and the rows that it wrote to the cache."""

VISION, HEAD = "vision", "head"
"""Who is to blame where it is no layer of the decoder: the vision graph, or norm and logits."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One quantity's errors, of every layer at every place.

    Attributes:
        quantity: `HIDDEN_STATES`, `KEYS`, `VALUES`, "visual features" or "logits".
        arithmetic: what the graph was computed in: its own format or, to see past that format's
            noise, float32. Each is judged by its own tolerance.
        errors: largest absolute error [layer][place], in the quantity's own unit; infinite where
            the graph gave NaN or left the format's range.
        tolerances: what `arithmetic` allows there, in the same unit.
        magnitudes: the largest true value there, in the same unit.
    """

    quantity: str
    arithmetic: str
    errors: Grid
    tolerances: Grid
    magnitudes: Grid

    @property
    def shares(self) -> Grid:
        """Errors as shares of the tolerance: 1.0 is at the tolerance, above is a failure."""
        return tuple(
            tuple(share_of(error, tolerance) for error, tolerance in zip(*row, strict=True))
            for row in zip(self.errors, self.tolerances, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """The first place where the graph computes something else, and what it looks like.

    Attributes:
        layer: of the decoder, from 0; or `VISION` or `HEAD`.
        place: the first place that is wrong, such as "frame 3".
        node: the first wrong node of that layer, by its name in the ONNX graph.
        tensor: what that node computes, in PyTorch's terms, such as "self_attn.k_proj".
        pattern: one of `tc_export.parity.layers.patterns`, such as "temporal position".
        words: the whole finding as a sentence.
        share: the worst error of that layer as a share of the tolerance.
    """

    layer: int | str
    place: str
    node: str
    tensor: str
    pattern: str
    words: str
    share: float


@dataclass(frozen=True, kw_only=True)
class ByLayerResult:
    """A decoder's graph against PyTorch, layer by layer.

    Attributes:
        judged: whose graphs, and what ran them.
        truth: what they were compared with.
        precision: of the graphs.
        layers: indices of the decoder's layers: the rows of all grids of `isolated` and
            `accumulated`.
        places: the columns of all grids.
        isolated: each layer fed with the truth, so that an error is of that layer alone.
        accumulated: each layer fed with what the graph's own layers made before it.
        vision: visual features, one row; None at places without frames.
        head: logits of the wanted tokens, fed with the truth, one row; None where none is wanted.
        culprit: None where everything is within its tolerance.
        notes: what a reader must know, such as that an engine shows no layers.
    """

    judged: str
    truth: str
    precision: str
    layers: tuple[int, ...]
    places: tuple[str, ...]
    isolated: tuple[Measured, ...]
    accumulated: tuple[Measured, ...]
    vision: tuple[Measured, ...]
    head: tuple[Measured, ...]
    culprit: Culprit | None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where nothing is to blame."""
        return self.culprit is None


def share_of(error: float | None, tolerance: float | None) -> float | None:
    """An error as a share of its tolerance; None where there is none."""
    if error is None or tolerance is None:
        return None
    if not isfinite(error) or not isfinite(tolerance):
        return inf
    if tolerance == 0.0:
        return inf if error else 0.0
    return error / tolerance


def worst_shares(measured: Iterable[Measured]) -> Grid:
    """The largest share [layer][place] of several quantities with the same rows and columns."""
    grids = [x.shares for x in measured]
    return tuple(
        tuple(
            max((x for x in cells if x is not None), default=None)
            for cells in zip(*rows, strict=True)
        )
        for rows in zip(*grids, strict=True)
    )
