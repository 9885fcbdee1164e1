# SPDX-License-Identifier: Apache-2.0
"""An examination for programs (JSON) and for people (tables)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tc_export.doctor import Report
from tc_export.doctor.checks import Finding


def as_json(report: Report) -> dict[str, Any]:
    """Everything of a report, in JSON's types."""
    return {
        "machine": {name: asdict(finding) for name, finding in report.findings.items()},
        "targets": {
            name: {"lacks": [asdict(lack) for lack in lacks]}
            for name, lacks in report.lacks.items()
        },
    }


def as_tables(report: Report) -> RenderableType:
    """The machine, then what lacks; a lack that several targets share is printed once."""
    machine = Table("part", "found", title="this machine")
    for name, finding in report.findings.items():
        machine.add_row(name.replace("_", " "), escape(_phrase(name, finding)))
    shared: dict[tuple[str, str, str], list[str]] = {}
    for target, lacks in report.lacks.items():
        for lack in lacks:
            shared.setdefault((lack.what, lack.needed_for, lack.mend), []).append(target)
    if not shared:
        return Group(machine, "nothing lacks here")
    lacking = Table("lacks", "for", "what mends it", "targets", title="what lacks here")
    for (what, purpose, mend), targets in shared.items():
        everyone = len(report.lacks) > 1 and len(targets) == len(report.lacks)
        cells = (what, purpose, mend, "all" if everyone else ", ".join(targets))
        lacking.add_row(*map(escape, cells))
    return Group(machine, lacking)


def _phrase(name: str, finding: Finding) -> str:
    if finding.missing is not None:
        return finding.missing
    if finding.failure is not None:
        return f"failed: {finding.failure}"
    if name == "packages":
        wrong = [package for package, fact in finding.facts.items() if not fact["fits"]]
        return f"{len(finding.facts)} needed; wrong or missing: {', '.join(wrong) or 'none'}"
    return "\n".join(f"{key}: {_fact(key, value)}" for key, value in finding.facts.items())


def _fact(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{value / 1e9:.1f} GB"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
