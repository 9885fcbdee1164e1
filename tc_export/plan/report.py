# SPDX-License-Identifier: Apache-2.0
"""A plan for programs (JSON) and for people (tables)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from tc_export.plan.planner import Plan
from tc_export.plan.units import spell_bytes, spell_number
from tc_export.targets import Doubt


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Everything of a plan, in JSON's types."""
    return {
        "target": plan.target.name,
        "precision": plan.workload.precisions.model_dump(mode="json"),
        "recipe": plan.workload.recipe.name if plan.workload.recipe else None,
        "frames": plan.workload.frames,
        "max_length": plan.workload.length,
        "tokens_per_frame": plan.config.tokens_per_frame,
        "fits": plan.fits,
        "max_frames": plan.max_frames,
        "max_frames_limited_by": plan.limited_by,
        "text_tokens": plan.text_tokens,
        "text_room": plan.text_room,
        "bytes": plan.bytes_by_part,
        "total_bytes": plan.total_bytes,
        "limit_bytes": plan.limit_bytes,
        "predicted": _predicted(plan),
        "build": {
            "decoder_parts": plan.workload.parts,
            "peak_bytes": plan.build.peak_bytes,
            "peak_bytes_without_parity": plan.build.without_parity_bytes,
            "peak_bytes_by_step": plan.build.peak_by_step,
            "host_bytes": plan.build.host_bytes,
            "fits": plan.build.fits,
        },
        "suggestions": [asdict(suggestion) for suggestion in plan.suggestions],
        "doubts": _doubts_as_json(_memory_doubts(plan)),
    }


def _predicted(plan: Plan) -> dict[str, Any] | None:
    times = plan.times
    if times is None:
        return None
    return {
        "vision_s": times.vision_s,
        "prefill_s": times.prefill_s,
        "time_to_first_token_s": times.time_to_first_token_s,
        "bounds": times.bounds,
        "decode_tokens_per_s": times.decode_tokens_per_s,
        "decoder_parts_s": times.parts_s,
        "figures": [
            {
                "name": figure.name,
                "value": figure.value,
                "unit": figure.unit,
                "doubts": _doubts_as_json(figure.doubts),
            }
            for figure in times.figures
        ],
    }


def _memory_doubts(plan: Plan) -> list[Doubt]:
    return [doubt for doubt in plan.target.doubts if doubt.field.startswith("memory.")]


def _doubts_as_json(doubts: Iterable[Doubt]) -> list[dict[str, Any]]:
    return [doubt.model_dump(mode="json") for doubt in doubts]


def plan_as_tables(plan: Plan) -> RenderableType:
    """Memory by part, the times with the figures that they rest on, and what would help."""
    parts: list[RenderableType] = [_memory_table(plan), _verdict(plan)]
    if plan.times is None:
        parts.append(
            f"no times: the file of the target {plan.target.name} has no bandwidth or no rate"
        )
    else:
        parts += [_times_table(plan)]
    parts.append(_build_line(plan))
    if plan.suggestions:
        parts.append(_suggestions_table(plan))
    notes = [f"{doubt.field}: {doubt.mark}, {doubt.reason}" for doubt in _memory_doubts(plan)]
    return Group(*parts, *notes)


def _memory_table(plan: Plan) -> Table:
    ask = plan.workload
    table = Table(
        title=f"{plan.target.name}: {ask.frames} frames, {ask.length} tokens, "
        f"vision {ask.precisions.vision}, decoder {ask.precisions.decoder}"
        + (f", quantised by {ask.recipe.name}" if ask.recipe else "")
    )
    table.add_column("part")
    table.add_column("memory", justify="right")
    for part, nbytes in plan.bytes_by_part.items():
        table.add_row(part.replace("_", " "), spell_bytes(nbytes))
    table.add_section()
    table.add_row("total", spell_bytes(plan.total_bytes))
    table.add_row("available", spell_bytes(plan.limit_bytes))
    return table


def _verdict(plan: Plan) -> str:
    verdict = "it fits" if plan.fits else "it does not fit"
    if not plan.max_frames:
        return f"{verdict}, not even with one frame"
    most = (
        f"{verdict}; the most frames, with {plan.text_tokens} tokens left for question and answer: "
        f"{plan.max_frames} (limited by the {plan.limited_by})"
    )
    if plan.text_room < plan.text_tokens:
        most += f"\nthe {plan.workload.frames} frames asked for leave {plan.text_room} tokens"
    return most


def _times_table(plan: Plan) -> Table:
    assert plan.times is not None
    table = Table(title="predicted from the figures below; not measured")
    for heading in ("figure", "value", "in doubt"):
        table.add_column(heading)
    times = plan.times
    table.add_row("time to first token", f"{spell_number(times.time_to_first_token_s)} s")
    table.add_row("  frames", f"{spell_number(times.vision_s)} s", _bound(plan, "vision"))
    table.add_row("  prompt", f"{spell_number(times.prefill_s)} s", _bound(plan, "prefill"))
    rate = spell_number(times.decode_tokens_per_s)
    table.add_row("decode", f"{rate} tokens/s", _bound(plan, "decode"))
    table.add_section()
    for figure in plan.times.figures:
        doubts = "; ".join(f"{doubt.mark}: {doubt.reason}" for doubt in figure.doubts)
        table.add_row(figure.name, f"{figure.value:g} {figure.unit}".rstrip(), doubts)
    return table


def _bound(plan: Plan, step: str) -> str:
    assert plan.times is not None
    return f"bound by {plan.times.bounds[step]}"


def _build_line(plan: Plan) -> str:
    build = plan.build
    has = "" if build.host_bytes is None else f"; this host has {spell_bytes(build.host_bytes)}"
    parts = plan.workload.parts
    cut = f"\nthe decoder becomes {parts} engines (--parts)" if parts > 1 else ""
    return (
        f"building here peaks at about {spell_bytes(build.peak_bytes)}, or "
        f"{spell_bytes(build.without_parity_bytes)} with --no-parity{has}{cut}"
    )


def _suggestions_table(plan: Plan) -> Table:
    table = Table(title="what would help")
    for heading in ("change", "memory", "most frames"):
        table.add_column(heading)
    for suggestion in plan.suggestions:
        table.add_row(
            suggestion.change, spell_bytes(suggestion.total_bytes), str(suggestion.max_frames)
        )
    return table
