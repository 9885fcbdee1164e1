# SPDX-License-Identifier: Apache-2.0
"""What quantising cost, for people (tables) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tc_export.parity.answers.statistics import CONFIDENCE, Verdict
from tc_export.parity.cost.result import Change, Cost, CostLimits, NotMeasured, Tally, TextCost
from tc_export.parity.reporting import Flip, flip_table
from tc_export.tasks import GRADES

PERCENTILES = (1, 5, 25, 50)
ALL = "all"

STYLES = {Verdict.WORSE: "red", Verdict.NOT_WORSE: "green", Verdict.UNDECIDED: "yellow"}


def cost_as_json(cost: Cost | NotMeasured) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    if isinstance(cost, NotMeasured):
        return {"measured": False, "reason": cost.reason}
    return {
        "measured": True,
        "recipe": cost.recipe,
        "unquantised": {"folder": cost.unquantised, "checked": cost.is_checked},
        "most_lost": cost.limits.most_lost,
        "confidence": CONFIDENCE,
        "strict": cost.limits.strict,
        ALL: _tally(cost.whole, cost.limits),
        "by_kind": {kind.value: _tally(x, cost.limits) for kind, x in cost.by_kind.items()},
        "flips": [_flip(change) for change in cost.flips],
        "margins": margins(cost.changes),
        "first_token_kl": cost.kl,
        "text": _text(cost.text),
        "notes": list(notes(cost)),
        "passed": cost.passed,
    }


def _tally(tally: Tally, limits: CostLimits) -> dict[str, Any]:
    low, high = tally.interval
    return {
        "items": tally.items,
        "accuracy": {
            "unquantised": tally.unquantised_right / tally.items,
            "quantised": tally.quantised_right / tally.items,
            "engine": tally.engine_right / tally.items,
        },
        "lost": tally.lost,
        "won": tally.won,
        "difference": tally.difference,
        "interval": [low, high],
        "p_value": tally.p_value,
        "verdict": str(tally.verdict(limits)),
        "items_to_decide": tally.items_to_decide(limits),
        "passed": tally.passes(limits),
    }


def _flip(change: Change) -> dict[str, Any]:
    return {
        "kind": change.item.kind.value,
        "grade": change.item.grade,
        "seed": change.item.seed,
        "question": change.item.question,
        "answer": change.item.answer,
        "unquantised": change.unquantised,
        "quantised": change.quantised,
        "engine": change.engine,
        "unquantised_margin": change.unquantised_margin,
        "quantised_margin": change.quantised_margin,
        "kl": change.kl,
    }


def margins(changes: Sequence[Change]) -> dict[str, dict[str, float]]:
    """Percentiles of the margin before and after, and of what it became smaller by."""
    before = np.array([change.unquantised_margin for change in changes])
    after = np.array([change.quantised_margin for change in changes])
    sides = {"unquantised": before, "quantised": after, "change": after - before}
    return {
        name: {"smallest": float(gaps.min())}
        | {f"percentile_{rank}": float(np.percentile(gaps, rank)) for rank in PERCENTILES}
        for name, gaps in sides.items()
    }


def _text(text: TextCost | NotMeasured) -> dict[str, Any]:
    if isinstance(text, NotMeasured):
        return {"measured": False, "reason": text.reason, "words": text_in_words(text)}
    return {
        "measured": True,
        "words": text_in_words(text),
        "passages": text.passages,
        "tokens": text.tokens,
        "perplexity": {
            "unquantised": text.unquantised_perplexity,
            "quantised": text.quantised_perplexity,
        },
        "kl": text.kl,
        "same_token": text.same_token,
    }


def cost_failures(cost: Cost | NotMeasured | None) -> list[str]:
    """A line for each kind that does not pass."""
    if not isinstance(cost, Cost):
        return []
    tallies = {ALL: cost.whole} | {kind.value: tally for kind, tally in cost.by_kind.items()}
    return [
        _failure(name, tally, cost.limits)
        for name, tally in tallies.items()
        if not tally.passes(cost.limits)
    ]


def cost_warning(cost: Cost | NotMeasured | None) -> str | None:
    """What has to be said where the cost is not known; None where there is none, or it is."""
    if not isinstance(cost, NotMeasured):
        return None
    return f"What quantising cost was not measured: {cost.reason}"


def _failure(name: str, tally: Tally, limits: CostLimits) -> str:
    low, high = tally.interval
    allowed = f"{100 * limits.most_lost:g} points"
    counts = f"{tally.unquantised_right} of {tally.items} right before, {tally.quantised_right} now"
    interval = f"between {100 * low:+.1f} and {100 * high:+.1f} points with {CONFIDENCE:.0%}"
    if tally.verdict(limits) is Verdict.WORSE:
        return (
            f"{name}: quantising cost {-100 * tally.difference:.1f} points ({counts}); the "
            f"difference is {interval}, and {allowed} may be lost"
        )
    enough = tally.items_to_decide(limits)
    needed = "" if enough is None else f"; about {enough} items would decide it"
    return (
        f"{name}: not shown to have lost at most {allowed} ({counts}); the difference is "
        f"{interval}{needed}"
    )


def cost_as_tables(cost: Cost | NotMeasured) -> Group:
    """Accuracy by kind, margins, text, and the first answers that turned."""
    if isinstance(cost, NotMeasured):
        return Group(Text(cost_warning(cost) or "", style="yellow"))
    tables: list[Table | Text] = [
        _kind_table(cost),
        _margin_table(cost),
        Text(text_in_words(cost.text)),
    ]
    if cost.flips:
        tables.append(_flip_table(cost.flips))
    return Group(*tables)


def _kind_table(cost: Cost) -> Table:
    table = Table(
        title=f"what quantising by {cost.recipe} cost, against {cost.unquantised}: % right",
        caption=f"McNemar's exact test of no difference in all: p = {cost.whole.p_value:.3g}. "
        + " ".join(notes(cost)),
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns have to hold it
    )
    table.add_column("kind", no_wrap=True)
    for heading in ("items", "before", "quan-\ntised", "engine", "lost\nwon", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for kind, tally in cost.by_kind.items():
        table.add_row(*_row(kind.value, tally, cost.limits))
    table.add_section()
    table.add_row(*_row(ALL, cost.whole, cost.limits))
    return table


def _row(name: str, tally: Tally, limits: CostLimits) -> Iterator[str | Text]:
    low, high = tally.interval
    verdict = tally.verdict(limits)
    rights = (tally.unquantised_right, tally.quantised_right, tally.engine_right)
    yield from (name, str(tally.items), *(f"{100 * right / tally.items:.1f}" for right in rights))
    yield f"-{tally.lost} +{tally.won}"
    yield f"{100 * low:+.1f} to {100 * high:+.1f}"
    yield Text(str(verdict), style=STYLES[verdict])


def notes(cost: Cost) -> Iterator[str]:
    """What a reader of the table by kind has to know, a sentence each."""
    yield (
        f"Interval: accuracy quantised less before, in points, {CONFIDENCE:.0%}, paired (score)."
    )
    yield (
        f"A kind is worse where its whole interval is below -{100 * cost.limits.most_lost:g}, not "
        "worse where none of it is, else undecided."
    )
    tallies = [x for x in cost.by_kind.values() if x.verdict(cost.limits) is Verdict.UNDECIDED]
    if tallies:
        fate = "fail, as --strict demands" if cost.limits.strict else "do not fail"
        yield f"Undecided kinds ({len(tallies)}) {fate}."
        counts = [x.items_to_decide(cost.limits) for x in tallies]
        most = max((count for count in counts if count is not None), default=None)
        if most is not None:
            yield (
                f"About {most} items of a kind would decide, if as large a share of them turned: "
                f"--items {ceil(most / len(GRADES))}."
            )
    if not cost.is_checked:
        yield (
            "The quantised checkpoint does not say what it was made from: that it was this one is "
            "taken on trust."
        )


def _margin_table(cost: Cost) -> Table:
    table = Table(
        title="margins: how far the answer's first token is above the next, in logits",
        caption="of the token that the unquantised model begins with; below 0 another one is "
        f"chosen now. KL of that token's distribution: {cost.kl:.3g} nats, mean",
    )
    sides = margins(cost.changes)
    table.add_column("")
    for heading in sides["change"]:
        table.add_column(heading.removeprefix("percentile_"), justify="right")
    names = {"unquantised": "before", "quantised": "quantised", "change": "change"}
    for side, name in names.items():
        table.add_row(name, *(f"{gap:.3g}" for gap in sides[side].values()))
    return table


def text_in_words(text: TextCost | NotMeasured) -> str:
    """What was found on text, in a sentence."""
    if isinstance(text, NotMeasured):
        return f"On text nothing was measured: {text.reason}."
    return (
        f"On {text.tokens} tokens of ordinary text: perplexity {text.unquantised_perplexity:.2f} "
        f"before, {text.quantised_perplexity:.2f} quantised; KL {text.kl:.3g} nats a token; the "
        f"same next token after {text.same_token:.1%}."
    )


def _flip_table(flips: Sequence[Change]) -> Table:
    return flip_table(
        [Flip(x.item, (x.unquantised, x.quantised), x.unquantised_margin) for x in flips],
        title="answers that turned",
        sides=("before", "quantised"),
        margin="margin before",
    )
