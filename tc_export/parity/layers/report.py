# SPDX-License-Identifier: Apache-2.0
"""A comparison layer by layer for people (a table) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.table import Table

from tc_export.parity.layers.result import HEAD, VISION, ByLayerResult, Grid, Measured, worst_shares
from tc_export.parity.reporting import spell_infinite, verdict

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "layer": "left",
    "alone": "right",
    "worst": "left",
    "error": "right",
    "tolerance": "right",
    "in turn": "right",
    "": "left",
}


def by_layer_as_json(result: ByLayerResult) -> dict[str, Any]:
    """Everything that was measured, ready for JSON. Infinite shares become strings.

    `isolated` and `accumulated` are the largest share of the tolerance [layer][frame], 1.0 being at
    the tolerance; what they are the largest of stands in `measured`, with absolute errors.
    """
    culprit = result.culprit
    document: dict[str, Any] = spell_infinite(
        {
            "layers": list(result.layers),
            "frames": list(result.places),
            "isolated": worst_shares(result.isolated),
            "accumulated": worst_shares(result.accumulated),
            "vision": worst_shares(result.vision)[0],
            "head": worst_shares(result.head)[0],
            "culprit": None if culprit is None else {**asdict(culprit), "frame": culprit.place},
            "passed": result.passed,
            "judged": result.judged,
            "truth": result.truth,
            "precision": result.precision,
            "notes": list(result.notes),
            "measured": {
                name: [_measured_as_json(x) for x in getattr(result, name)]
                for name in ("isolated", "accumulated", "vision", "head")
            },
        }
    )
    return document


def _measured_as_json(measured: Measured) -> dict[str, Any]:
    return {**asdict(measured), "shares": measured.shares}


def by_layer_as_table(result: ByLayerResult) -> Table:
    """A row for each layer: where it is worst by itself, and what has added up by then."""
    table = Table(
        title=f"{result.judged} against {result.truth} ({result.precision})",
        caption="\n".join(
            [
                "alone: fed with the truth; in turn: fed with what the layers before made; of the "
                "tolerance",
                *result.notes,
            ]
        ),
    )
    for heading, side in _COLUMNS.items():
        table.add_column(heading, justify=side)
    _add_row(table, result, VISION, result.vision, 0)
    for layer in result.layers:
        accumulated = _largest(worst_shares(result.accumulated), layer)
        _add_row(table, result, str(layer), result.isolated, layer, f"{accumulated:.0%}")
    _add_row(table, result, HEAD, result.head, 0)
    return table


def by_layer_failure(result: ByLayerResult) -> str:
    """The finding as a sentence, and the node to look at."""
    culprit = result.culprit
    if culprit is None:
        return "nothing is out of its tolerance"
    node = f" (node {culprit.node})" if culprit.node else ""
    return f"{culprit.words}{node}; error {culprit.share:.3g} times the tolerance"


def _add_row(
    table: Table,
    result: ByLayerResult,
    title: str,
    measured: Sequence[Measured],
    row: int,
    accumulated: str = "",
) -> None:
    """The worst cell of one row of grids."""
    cells = [
        (share, column, x)
        for x in measured
        for column, share in enumerate(x.shares[row])
        if share is not None
    ]
    share, column, x = max(cells, key=lambda cell: cell[0])
    what = x.quantity if x.arithmetic in result.precision else f"{x.quantity}, {x.arithmetic}"
    table.add_row(
        title,
        f"{share:.0%}",
        f"{what}, {result.places[column]}",
        f"{x.errors[row][column]:.1e}",
        f"{x.tolerances[row][column]:.1e}",
        accumulated,
        verdict(share <= 1),
    )


def _largest(grid: Grid, row: int) -> float:
    return max((x for x in grid[row] if x is not None), default=0.0)
