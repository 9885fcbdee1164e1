# SPDX-License-Identifier: Apache-2.0
"""A parity result for people (a table) and for programs (JSON)."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.table import Table

from tc_export.parity.assets.comparison import AssetComparison
from tc_export.parity.reporting import spell_infinite, verdict
from tc_export.parity.tensors.result import AnswerComparison, ParityResult
from tc_export.parity.tensors.tolerance import ILL_SHARE
from tc_export.parity.tensors.verdict import NoiseVerdict, TensorComparison

REASON = (
    "The truth is PyTorch in float64, with the engine's weights. What noise the number format "
    "allows is measured token by token, by several runs of PyTorch that round and sum otherwise. A "
    "token may err by a factor of its noise, and the median token by a smaller one; both are "
    "chosen so that a right engine fails once in 10,000 comparisons."
)

_MOST_ROWS = 8


def result_as_json(result: ParityResult) -> dict[str, Any]:
    """Everything that was compared, ready for JSON. Infinite errors (NaN) become strings."""
    document: dict[str, Any] = spell_infinite(
        {
            "passed": result.passed,
            "engine": result.engine,
            "truth": result.truth,
            "precision": result.precision,
            "reason": REASON,
            "notes": list(result.notes),
            "false_alarm_rate": sum(x.false_alarm_rate for x in result.noise),
            "ill_conditioned_share": result.ill_conditioned_share,
            "noise": [
                {**asdict(x), "is_judged": x.is_judged, "passed": x.passed} for x in result.noise
            ],
            "assets": [asdict(x) for x in result.assets],
            "tensors": [
                {**asdict(x), "share": x.share, "passed": x.passed} for x in result.tensors
            ],
            "answers": [
                {**asdict(x), "first_difference": x.first_difference, "passed": x.passed}
                for x in result.answers
            ],
        }
    )
    return document


def failures(result: ParityResult) -> list[str]:
    """A line for each comparison that failed, in the order of the model: the first one counts."""
    return [
        *(describe_asset(x) for x in result.assets if not x.passed),
        *(describe_tensor(x) for x in result.tensors if not x.passed),
        *(describe_noise(x) for x in result.noise if not x.passed),
        *(describe_answer(x) for x in result.answers if not x.passed),
    ]


def headline(result: ParityResult) -> str:
    """What a comparison that failed says, in a line."""
    computes = [x.passed for x in result.tensors] + [x.passed for x in result.noise]
    computes += [x.passed for x in result.answers]
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


def describe_noise(x: NoiseVerdict) -> str:
    """What is wrong with a scenario's tokens as a whole."""
    if not x.is_judged:
        return (
            f"{x.stage}: PyTorch's own runs part by orders of magnitude at "
            f"{x.ill_conditioned_share:.1%} of the tokens, and by more than {ILL_SHARE:.0%} there "
            "is nothing to judge by: choose another --precision"
        )
    return (
        f"{x.stage}, step {x.median_step}: the median token's error is {x.median_ratio:.3g} times "
        f"PyTorch's noise, and may be {x.median_factor:.3g} times"
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
        caption="\n".join(
            [
                "error, PyTorch's, tolerance: largest absolute, at the worst token; median: the "
                "errors of a call's tokens over PyTorch's noise, and what that may be",
                *(_left_out(x) for x in result.noise if x.ill_conditioned),
                *result.notes,
            ]
        ),
    )
    for heading in ("what", "steps", "error", "PyTorch's", "tolerance", "share", "median", ""):
        table.add_column(heading, justify="left" if heading in ("what", "") else "right")
    for asset in result.assets:
        table.add_row(asset.name, "", "", "", "", "", "", verdict(asset.passed))
    for stage, group in groupby(result.tensors, key=lambda x: x.stage):
        noise = [x for x in result.noise if x.stage == stage]
        _add_tensor_row(table, stage, list(group), noise)
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
            "",
            verdict(answer.passed),
        )
    return table


def _left_out(x: NoiseVerdict) -> str:
    """Which tokens are not judged, and why."""
    rows = ", ".join(str(token.row) for token in x.ill_conditioned[:_MOST_ROWS])
    more = len(x.ill_conditioned) - _MOST_ROWS
    rows += f" and {more} more" if more > 0 else ""
    return (
        f"{x.stage}: {len(x.ill_conditioned)} of {x.tokens} tokens are ill-conditioned and not "
        f"judged, since PyTorch's own runs part there by orders of magnitude: rows {rows}"
    )


def _add_tensor_row(
    table: Table, stage: str, items: list[TensorComparison], noise: list[NoiseVerdict]
) -> None:
    worst = max(items, key=lambda x: x.share)
    table.add_row(
        stage,
        str(len(items)),
        f"{worst.engine_error:.2e}",
        f"{worst.pytorch_error:.2e}",
        f"{worst.tolerance:.2e}",
        f"{worst.share:.0%}",
        *(f"{x.median_ratio:.2f} / {x.median_factor:.2f}" for x in noise),
        verdict(all(x.passed for x in items) and all(x.passed for x in noise)),
    )
