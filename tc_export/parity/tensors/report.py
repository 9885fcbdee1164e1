# SPDX-License-Identifier: Apache-2.0
"""A parity result for people (a table) and for programs (JSON)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tc_export.parity.assets.comparison import AssetComparison
from tc_export.parity.reporting import spell_infinite, verdict
from tc_export.parity.tensors.check import AnswerComparison, ParityResult
from tc_export.parity.tensors.tolerance import TensorComparison

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def result_as_json(result: ParityResult) -> dict[str, Any]:
    """Everything that was compared, ready for JSON. Infinite errors (NaN) become strings."""
    document: dict[str, Any] = spell_infinite(
        {
            "passed": result.passed,
            "engine": result.engine,
            "truth": result.truth,
            "precision": result.precision,
            "notes": list(result.notes),
            "tensors": [
                {**asdict(x), "share": x.share, "passed": x.passed} for x in result.tensors
            ],
            "answers": [
                {**asdict(x), "first_difference": x.first_difference, "passed": x.passed}
                for x in result.answers
            ],
            "assets": [asdict(x) for x in result.assets],
        }
    )
    return document


def failures(result: ParityResult) -> list[str]:
    """A line for each comparison that failed, in the order of the model: the first one counts."""
    return [
        *(describe_asset(x) for x in result.assets if not x.passed),
        *(describe_tensor(x) for x in result.tensors if not x.passed),
        *(describe_answer(x) for x in result.answers if not x.passed),
    ]


def headline(result: ParityResult) -> str:
    """What a comparison that failed says, in a line."""
    computes = [x.passed for x in result.tensors] + [x.passed for x in result.answers]
    if all(computes):
        return "the bundle does not carry what the checkpoint has"
    return "the engine does not compute what PyTorch computes"


def describe_asset(x: AssetComparison) -> str:
    """What a bundle has, and what it should have."""
    note = f" ({x.note})" if x.note else ""
    return f"{x.name}: {x.found}, should be {x.expected}{note}"


def describe_tensor(x: TensorComparison) -> str:
    """Where a tensor is worst, and by how much."""
    limit = (
        f"tolerance {x.tolerance:.3g}"
        if x.is_judged
        else "and PyTorch itself leaves the range of the number format"
    )
    return (
        f"{x.stage}, step {x.step}: {x.tensor}{list(x.worst_index)} is {x.engine_value:.6g}, "
        f"should be {x.true_value:.6g}; error {x.engine_error:.3g}, {limit}"
    )


def describe_answer(x: AnswerComparison) -> str:
    """Where two answers begin to differ."""
    return (
        f"{x.scenario}: the greedy answers differ from token {x.first_difference} on "
        f"(margin {x.margin:.3g}, tolerance {x.tolerance:.3g}): "
        f"{list(x.engine_tokens)}, should be {list(x.true_tokens)}"
    )


def as_table(result: ParityResult) -> Table:
    """One row an asset, a stage (with its worst step), an answer."""
    table = Table(
        title=f"{result.engine} against {result.truth} ({result.precision})",
        caption="error: largest absolute; tolerance: twice PyTorch's own error in "
        + "\n".join([f"{result.precision}, plus a floor", *result.notes]),
    )
    for heading in ("what", "steps", "error", "PyTorch's", "tolerance", "share", ""):
        table.add_column(heading, justify="left" if heading in ("what", "") else "right")
    for asset in result.assets:
        table.add_row(asset.name, "", "", "", "", "", verdict(asset.passed))
    for stage, group in groupby(result.tensors, key=lambda x: x.stage):
        _add_tensor_row(table, stage, list(group))
    for answer in result.answers:
        length = len(answer.true_tokens)
        agreed = length if answer.first_difference is None else answer.first_difference
        table.add_row(
            f"{answer.scenario}: greedy answer",
            f"{agreed}/{length}",
            "",
            "",
            "",
            "",
            verdict(answer.passed),
        )
    return table


def _add_tensor_row(table: Table, stage: str, items: list[TensorComparison]) -> None:
    worst = max(items, key=lambda x: x.share)
    table.add_row(
        stage,
        str(len(items)),
        f"{worst.engine_error:.2e}",
        f"{worst.pytorch_error:.2e}",
        f"{worst.tolerance:.2e}",
        f"{worst.share:.0%}",
        verdict(all(x.passed for x in items)),
    )


def write_report(result: ParityResult, folder: Path) -> None:
    """Write `report.json`, and the table as `report.html`."""
    (folder / REPORT_JSON).write_text(json.dumps(result_as_json(result), indent=2) + "\n")
    console = Console(record=True, width=140, file=io.StringIO(), markup=False, emoji=False)
    console.print(as_table(result))
    _print_lines(console, failures(result))
    console.save_html(str(folder / REPORT_HTML))


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False)
