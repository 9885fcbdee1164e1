# SPDX-License-Identifier: Apache-2.0
"""`report.html`: one file that needs nothing else, made from what `report.json` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tc_export.parity.report.heat_map import CLASSES, heat_map
from tc_export.parity.report.interval_chart import Interval, interval_chart
from tc_export.parity.reporting import spell_share

TEMPLATE = "page.html.jinja"
WORST, SHOWN_FAILURES = 12, 6

MAPS = {
    "isolated": "each layer is given the truth: an error is its own",
    "accumulated": "each layer is given what the engine's layers before it made",
}

Document = Mapping[str, Any]


def render(document: Document, failures: Sequence[str] = ()) -> str:
    """The page of a report.

    Args:
        document: what `report.json` holds; docs/parity.md says what that is.
        failures: a line for each comparison that failed.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_layer, tasks = document.get("by_layer"), document.get("tasks")
    computes = document["passed"] and (by_layer is None or by_layer["culprit"] is None)
    return environment.get_template(TEMPLATE).render(
        passed=computes and (tasks is None or tasks["passed"]),
        computes=computes,
        tasks=tasks and _tasks(tasks),
        cost=tasks and tasks["cost"] and _cost(tasks["cost"]),
        engine=document["engine"],
        notes=document["notes"],
        failures=failures,
        shown_failures=SHOWN_FAILURES,
        classes=CLASSES,
        maps=list(_maps(by_layer)) if by_layer else [],
        culprit=by_layer["culprit"] if by_layer else None,
        stages=list(_stages(document["tensors"])),
        reason=document["reason"],
        answers=[{**x, "margin": _number(x["margin"])} for x in document["answers"]],
        assets=document.get("assets", []),
        noise=[_noise(x) for x in document.get("noise", [])],
        worst=list(_worst(document["tensors"])),
        provenance=list(_provenance(document)),
        repeat=document.get("repeat"),
    )


def _maps(by_layer: Document) -> Iterator[dict[str, Any]]:
    rows = [f"layer {layer}" for layer in by_layer["layers"]]
    for name, words in MAPS.items():
        shares = [[_as_float(x) for x in row] for row in by_layer[name]]
        title = f"{name}: error of {len(rows)} layers at {len(by_layer['frames'])} places"
        svg = heat_map(title, rows, by_layer["frames"], shares)
        yield {"title": name, "words": words, "svg": Markup(svg)}


def _stages(tensors: Sequence[Document]) -> Iterator[dict[str, Any]]:
    for stage, group in groupby(tensors, key=lambda x: x["stage"]):
        found = list(group)
        worst = max(found, key=_share_of)
        yield {
            "stage": stage,
            "calls": len(found),
            "error": _number(worst["engine_error"]),
            "pytorch": _number(worst["pytorch_error"]),
            "tolerance": _number(worst["tolerance"]),
            "share": spell_share(_share_of(worst)),
            "passed": all(x["passed"] for x in found),
        }


def _tasks(tasks: Document) -> dict[str, Any]:
    """Answers to generated questions, engine and PyTorch alike."""
    rows = [*tasks["by_kind"].items(), ("all", {"items": tasks["items"], **tasks["accuracy"]})]
    flips = [flip["kind"] for flip in tasks["flips"]]
    return {
        "alike": tasks["answers_alike"],
        "rows": [
            {
                "kind": kind,
                "count": found["items"],
                "pytorch": _percent(found["pytorch"]),
                "engine": _percent(found["engine"]),
                "flips": len(flips) if kind == "all" else flips.count(kind),
            }
            for kind, found in rows
        ],
    }


def _cost(cost: Document) -> dict[str, Any]:
    """What quantising cost, or why that is not known."""
    if not cost["measured"]:
        verdict = "What quantising cost was not measured."
        return {"measured": False, "reason": cost["reason"], "verdict": verdict}
    rows = [*cost["by_kind"].items(), ("all", cost["all"])]
    return {
        "measured": True,
        "verdict": "Quantising cost no kind of question too much, as far as so many items show it."
        if cost["passed"]
        else "Quantising cost more than it may.",
        "recipe": cost["recipe"],
        "unquantised": cost["unquantised"]["folder"],
        "most_lost": f"{100 * cost['most_lost']:g}",
        "confidence": f"{100 * cost['confidence']:g} %",
        "notes": cost["notes"],
        "rows": [_cost_row(kind, found) for kind, found in rows],
        "chart": Markup(
            interval_chart(
                "difference of accuracy, in points, and its interval",
                [
                    Interval(
                        kind, *(100 * float(x) for x in (found["difference"], *found["interval"]))
                    )
                    for kind, found in rows
                ],
                mark=-100 * cost["most_lost"],
            )
        ),
        "margins": [
            (name, *(_number(gap) for gap in gaps.values()))
            for name, gaps in cost["margins"].items()
        ],
        "kl": _number(cost["first_token_kl"]),
        "text": cost["text"]["words"],
    }


def _cost_row(kind: str, found: Document) -> dict[str, Any]:
    low, high = found["interval"]
    return {
        "kind": kind,
        "count": found["items"],
        **{side: _percent(share) for side, share in found["accuracy"].items()},
        "lost": found["lost"],
        "won": found["won"],
        "interval": f"{100 * low:+.1f} to {100 * high:+.1f}",
        "p_value": _number(found["p_value"], digits=2),
        "verdict": found["verdict"],
        "passed": found["passed"],
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _noise(found: Document) -> dict[str, Any]:
    return {
        "stage": found["stage"],
        "tokens": found["tokens"],
        "ill": len(found["ill_conditioned"]),
        "median": _number(found["median_ratio"]),
        "limit": _number(found["median_factor"]),
        "passed": found["passed"],
    }


def _worst(tensors: Sequence[Document]) -> Iterator[dict[str, str]]:
    for x in sorted(tensors, key=_share_of, reverse=True)[:WORST]:
        yield {
            "where": f"{x['stage']}, call {x['step']}",
            "number": f"{x['tensor']}[{', '.join(map(str, x['worst_index']))}]",
            "is": _number(x["engine_value"], digits=7),
            "should_be": _number(x["true_value"], digits=7),
            "error": _number(x["engine_error"]),
            "tolerance": _number(x["tolerance"]),
            "share": spell_share(_share_of(x)),
        }


def _provenance(document: Document) -> Iterator[tuple[str, str]]:
    yield "truth", document["truth"]
    yield "number format", document["precision"]
    for name, value in document.get("bundle", {}).items():
        yield name.replace("_", " "), _spell(value)
    yield "versions", _spell(document.get("versions", {}))


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spell(x)}" for name, x in value.items())
    return str(value)


def _share_of(tensor: Document) -> float:
    return _as_float(tensor["share"]) or 0.0


def _as_float(value: float | str | None) -> float | None:
    """A number of the document, where one that is not finite is a word."""
    if value is None:
        return None
    number = float(value)
    return inf if number != number else number


def _number(value: float | str, digits: int = 3) -> str:
    return f"{float(value):.{digits}g}"
