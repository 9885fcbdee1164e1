# SPDX-License-Identifier: Apache-2.0
"""The answers of both sides for people (tables) and for programs (JSON)."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from tc_export.parity.answers.accuracy import Accuracy, Pair, TaskResult
from tc_export.parity.answers.perturbations import Perturbation
from tc_export.parity.answers.statistics import CONFIDENCE
from tc_export.parity.cost.report import cost_as_json, cost_as_tables
from tc_export.parity.reporting import Flip, flip_table, spell_infinite, verdict
from tc_export.tasks import best_guess_by_kind

MARGIN_PERCENTILES = (1, 5, 25, 50)


def tasks_as_json(result: TaskResult) -> dict[str, Any]:
    """Everything that was found, ready for JSON. Numbers that are not finite become strings."""
    low, high = result.interval
    document = {
        "items": len(result.pairs),
        "accuracy": _shares(result.accuracy),
        "by_kind": {
            kind.value: {"items": accuracy.items, **_shares(accuracy)}
            for kind, accuracy in result.by_kind.items()
        },
        "flips": [_flip(pair) for pair in result.flips],
        "interval": [low, high],
        "p_value": result.p_value,
        "liveness": {
            str(perturbation): _liveness(result, perturbation) for perturbation in result.movements
        },
        "margins": margins(result),
        "answers_alike": result.answers_alike,
        "cost": None if result.cost is None else cost_as_json(result.cost),
        "passed": result.passed,
    }
    spelled: dict[str, Any] = spell_infinite(document)
    return spelled


def _shares(accuracy: Accuracy) -> dict[str, float]:
    return {"pytorch": accuracy.pytorch, "engine": accuracy.engine}


def _flip(pair: Pair) -> dict[str, Any]:
    return {
        "kind": pair.item.kind.value,
        "grade": pair.item.grade,
        "seed": pair.item.seed,
        "question": pair.item.question,
        "answer": pair.item.answer,
        "pytorch": pair.pytorch,
        "engine": pair.engine,
        "pytorch_margin": pair.pytorch_margin,
        "engine_margin": pair.engine_margin,
    }


def _liveness(result: TaskResult, perturbation: Perturbation) -> dict[str, Any]:
    movement = result.movements[perturbation]
    return {
        "movement": {"pytorch": movement.pytorch_share, "engine": movement.engine_share},
        "relative_difference": movement.relative_difference,
        "correlation": movement.correlation,
        "accuracy": _shares(Accuracy.of(result.perturbed[perturbation])),
        "passed": movement.passes(result.thresholds.liveness),
    }


def margins(result: TaskResult) -> dict[str, dict[str, float]]:
    """For each side, the smallest gap between first and second choice, and percentiles of it."""
    found = {}
    for side in ("pytorch", "engine"):
        gaps = np.array([getattr(pair, f"{side}_margin") for pair in result.pairs])
        percentiles = np.percentile(gaps, MARGIN_PERCENTILES)
        found[side] = {"smallest": float(gaps.min())} | {
            f"percentile_{rank}": float(gap)
            for rank, gap in zip(MARGIN_PERCENTILES, percentiles, strict=True)
        }
    return found


def task_failures(result: TaskResult) -> list[str]:
    """A line for each reason for the engine not to pass; the cost has its own."""
    lines = []
    limit = result.thresholds.loss
    accuracies = {"all items": result.accuracy, "kinds that need time": result.temporal_accuracy}
    for what, accuracy in accuracies.items():
        if not accuracy.loss <= limit:
            lines.append(
                f"{what}: the engine answers {accuracy.engine:.1%} right, PyTorch "
                f"{accuracy.pytorch:.1%}; it may lose {limit:.1%}"
            )
    for perturbation, movement in result.movements.items():
        if not movement.is_alive:
            lines.append(
                f"frames {perturbation}: PyTorch's own logits move by only "
                f"{movement.pytorch_share:.1e} of their size: this model takes no notice of time"
            )
        elif not movement.passes(result.thresholds.liveness):
            lines.append(
                f"frames {perturbation}: the engine's logits move differently from PyTorch's, by "
                f"{movement.relative_difference:.1%} of that movement (correlation "
                f"{movement.correlation:.3f}); allowed are {result.thresholds.liveness:.1%}"
            )
    return lines


def tasks_headline(result: TaskResult) -> str:
    """What an engine that did not pass is told, in a line."""
    if not result.answers_alike:
        return "the engine does not answer as PyTorch does"
    return "quantising cost more than it may"


def tasks_as_tables(result: TaskResult) -> Group:
    """Accuracy by kind, the sense of time, decode margins, the first flips, and the cost."""
    tables = [_accuracy_table(result), _liveness_table(result), _margin_table(result)]
    if result.flips:
        tables.append(_flip_table(result.flips))
    cost = [] if result.cost is None else [cost_as_tables(result.cost)]
    return Group(*tables, *cost)


def _accuracy_table(result: TaskResult) -> Table:
    low, high = result.interval
    table = Table(
        title=f"{result.engine} against {result.pytorch}: answers that are right",
        caption=f"engine less PyTorch: {low:+.1%} to {high:+.1%} ({CONFIDENCE:.0%} interval, "
        f"paired, score); McNemar's exact test: p = {result.p_value:.3g}; guess: always "
        "the commonest answer",
    )
    for heading in ("kind", "needs time", "items", "PyTorch", "engine", "flips", "guess"):
        table.add_column(heading, justify="left" if heading in ("kind", "needs time") else "right")
    guesses = best_guess_by_kind([pair.item for pair in result.pairs])
    flips = [pair.item.kind for pair in result.flips]
    for kind, accuracy in result.by_kind.items():
        table.add_row(
            kind.value,
            "yes" if kind.needs_time else "no",
            str(accuracy.items),
            f"{accuracy.pytorch:.1%}",
            f"{accuracy.engine:.1%}",
            str(flips.count(kind)),
            f"{guesses[kind]:.0%}",
        )
    table.add_section()
    whole = result.accuracy
    shares = (f"{whole.pytorch:.1%}", f"{whole.engine:.1%}")
    table.add_row("all", "", str(whole.items), *shares, str(len(flips)), "")
    return table


def _liveness_table(result: TaskResult) -> Table:
    table = Table(
        title="sense of time: how the logits move when the frames are tampered with",
        caption="moves: share of the logits' size; difference: of the two movements, as a share "
        f"of PyTorch's, at most {result.thresholds.liveness:.0%}; right: of the kinds that need "
        "time",
    )
    table.add_column("frames", no_wrap=True)
    for heading in ("PyTorch\nmoves", "engine\nmoves", "differ-\nence", "corre-\nlation"):
        table.add_column(heading, justify="right")
    for heading in ("PyTorch\nright", "engine\nright"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for perturbation, movement in result.movements.items():
        accuracy = Accuracy.of(result.perturbed[perturbation])
        table.add_row(
            str(perturbation),
            f"{movement.pytorch_share:.1%}",
            f"{movement.engine_share:.1%}",
            f"{movement.relative_difference:.2g}",
            f"{movement.correlation:.4f}",
            f"{accuracy.pytorch:.1%}",
            f"{accuracy.engine:.1%}",
            verdict(movement.passes(result.thresholds.liveness)),
        )
    return table


def _margin_table(result: TaskResult) -> Table:
    table = Table(
        title="decode margins: smallest gap between first and second choice, in logits",
        caption="smallest of all answers, and percentiles",
    )
    sides = margins(result)
    table.add_column("")
    for heading in sides["engine"]:
        table.add_column(heading.removeprefix("percentile_"), justify="right")
    for side, name in (("pytorch", "PyTorch"), ("engine", "engine")):
        table.add_row(name, *(f"{gap:.3g}" for gap in sides[side].values()))
    return table


def _flip_table(flips: list[Pair]) -> Table:
    return flip_table(
        [Flip(x.item, (x.pytorch, x.engine), x.pytorch_margin) for x in flips],
        title="answers that flipped",
        sides=("PyTorch", "engine"),
        margin="PyTorch's margin",
    )
