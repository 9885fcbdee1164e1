# SPDX-License-Identifier: Apache-2.0
"""From errors of tokens to cells: one number for each quantity, layer and place.

Axes: S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.dtypes import DType
from tc_export.parity.layers.result import Measured, share_of
from tc_export.parity.layers.tolerance import magnitudes, token_errors, token_tolerances


@dataclass(frozen=True)
class _Cell:
    error: float
    tolerance: float
    magnitude: float

    @property
    def share(self) -> float:
        """Above 1 is a failure."""
        return share_of(self.error, self.tolerance) or 0.0


class Cells:
    """All cells of one sweep in one arithmetic."""

    def __init__(
        self, rows: int, places: Sequence[str], arithmetic: str, *, median: bool = False
    ) -> None:
        """Start without any.

        Args:
            rows: layers.
            places: columns.
            arithmetic: the format that results are rounded to.
            median: of the tokens at a place the median counts, by share, and not the worst.
        """
        self._rows = rows
        self._places = tuple(places)
        self._arithmetic = arithmetic
        self._epsilon = DType(arithmetic).epsilon
        self._median = median
        self._cells: dict[str, dict[tuple[int, int], _Cell]] = {}

    def add(
        self,
        quantity: str,
        row: int,
        labels: Sequence[str],
        truth: np.ndarray,
        draws: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
    ) -> None:
        """Add a quantity [S, ...] of tokens at the places `labels`.

        `values` are what is judged: the worst of them counts. `draws` are PyTorch's.
        """
        errors = np.max([token_errors(x, truth) for x in values], axis=0)
        tolerances = token_tolerances(truth, draws, self._epsilon)
        scales = magnitudes(truth)
        kept = self._cells.setdefault(quantity, {})
        for label in dict.fromkeys(labels):
            tokens = np.flatnonzero(np.array(labels) == label)
            cells = [
                _Cell(float(errors[x]), float(tolerances[x]), float(scales[x])) for x in tokens
            ]
            cells.sort(key=lambda cell: cell.share)
            cell = cells[len(cells) // 2] if self._median else cells[-1]
            place = row, self._places.index(label)
            if place not in kept or cell.share > kept[place].share:
                kept[place] = cell

    def worst(self, row: int) -> float:
        """The largest share of a layer, of all quantities and places."""
        cells = [x for kept in self._cells.values() for (at, _), x in kept.items() if at == row]
        return max((x.share for x in cells), default=0.0)

    def measured(self) -> tuple[Measured, ...]:
        """The grids of every quantity."""
        return tuple(self._measured(quantity) for quantity in self._cells)

    def _measured(self, quantity: str) -> Measured:
        cells = self._cells[quantity]
        grid = [
            [cells.get((row, column)) for column in range(len(self._places))]
            for row in range(self._rows)
        ]
        errors, tolerances, scales = (
            tuple(tuple(None if x is None else getattr(x, name) for x in row) for row in grid)
            for name in ("error", "tolerance", "magnitude")
        )
        return Measured(
            quantity=quantity,
            arithmetic=self._arithmetic,
            errors=errors,
            tolerances=tolerances,
            magnitudes=scales,
        )
