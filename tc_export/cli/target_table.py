# SPDX-License-Identifier: Apache-2.0
"""Targets as a table for people: a figure in doubt carries the mark of its doubt."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from tc_export.targets import Mark, Target

_SIGNS = {Mark.DERIVED: "†", Mark.UNCERTAIN: "?", Mark.ASSUMED: "*"}
_RATES = ("float16", "int8", "fp8", "nvfp4")


def as_table(targets: Iterable[Target]) -> Table:
    """One row for each target."""
    caption = "rates are dense TFLOP/s; "
    caption += ", ".join(f"{sign} {mark}" for mark, sign in _SIGNS.items())
    table = Table(title="targets", caption=caption)
    table.add_column("target", no_wrap=True)
    for heading in ("SM", "GB", "GB/s", "FP16", "INT8", "FP8", "FP4"):
        table.add_column(heading, no_wrap=True)
    table.add_column("engine")
    for target in targets:
        table.add_row(*_cells(target))
    return table


def _cells(target: Target) -> list[str]:
    memory, rates = target.memory, target.rates

    def cell(field: str, value: float | None, missing: str = "-") -> str:
        if value is None:
            return missing
        return f"{value:g}" + "".join(_SIGNS[doubt.mark] for doubt in target.doubts_about(field))

    return [
        target.name,
        "-" if target.sm is None else str(target.sm),
        cell("memory.total_gb", memory.total_gb, "host")
        + (f" ({cell('memory.usable_gb', memory.usable_gb)})" if memory.usable_gb else ""),
        cell("memory.bandwidth_gb_s", memory.bandwidth_gb_s, "host"),
        *(cell(f"rates.{name}", getattr(rates, name)) for name in _RATES),
        target.toolchain.engine,
    ]
