# SPDX-License-Identifier: Apache-2.0
"""Tables that only the command line prints: targets, a bundle, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from tc_export.targets import Target

_SIGNS = {"derived": "†", "uncertain": "?", "assumed": "*"}
_RATES = ("float16", "int8", "fp8", "nvfp4")


def targets_table(targets: Iterable[Target]) -> Table:
    """One row for each target; a figure in doubt carries the sign of its doubt.

    It fits 80 columns whole: its lines have no space to their sides.
    """
    caption = "rates are dense TFLOP/s; "
    caption += ", ".join(f"{sign} {mark}" for mark, sign in _SIGNS.items())
    table = Table(title="targets", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("target", "SM", "GB", "GB/s", "FP16", "INT8", "FP8", "FP4", "engine"):
        table.add_column(heading, no_wrap=True)
    for target in targets:
        table.add_row(*_target_cells(target))
    return table


def _target_cells(target: Target) -> list[str]:
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


def bundle_tables(facts: Mapping[str, Any]) -> Group:
    """What `tc_export.bundle.inspect` finds: the manifest's entries, then the files."""
    entries = Table(title=facts["bundle"], show_header=False)
    for name, value in facts.items():
        if name not in ("bundle", "stages", "files"):
            entries.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    files = Table("file", "bytes")
    for path, size in facts["files"].items():
        files.add_row(path, f"{size:,}")
    return Group(entries, files)


def checkpoint_tables(facts: Mapping[str, Any]) -> Group:
    """What `tc_export.checkpoint.describe` finds: the forms of weights, then another's tensors."""
    forms = Table("weights in", "count", "numbers", "bytes", title=facts["checkpoint"])
    for form, sums in facts["weights"].items():
        forms.add_row(form, *(f"{sums[name]:,}" for name in ("count", "numbers", "bytes")))
    quantised = facts["quantised"]
    if quantised is None:
        return Group(forms)
    parts = Table("tensor", "weights", "what", title=f"{quantised['by']}: {quantised['form']}")
    for name, part in quantised["tensors"].items():
        used = "" if part["used"] else " (not used)"
        parts.add_row(name, f"{part['count']:,}", part["meaning"] + used)
    return Group(forms, parts, *quantised["notes"], quantised["becomes"])
