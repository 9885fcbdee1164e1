# SPDX-License-Identifier: Apache-2.0
"""An examination for programs (JSON) and for people (tables)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from tc_export.doctor import Report
from tc_export.doctor.checks import Finding
from tc_export.doctor.missing import Missing
from tc_export.targets import Target


def report_as_json(report: Report) -> dict[str, Any]:
    """Everything of a report, in JSON's types."""
    return {
        "machine": {name: asdict(finding) for name, finding in report.findings.items()},
        "targets": {
            each.target.name: {
                "missing": [asdict(thing.for_target(each.target)) for thing in each.missing]
            }
            for each in report.targets
        },
    }


def report_as_tables(report: Report) -> RenderableType:
    """The machine, then what is missing: targets that miss the same things share a row."""
    machine = Table("part", "found", title="this machine")
    for name, finding in report.findings.items():
        machine.add_row(name.replace("_", " "), _phrase(name, finding))
    missing = Table(title="missing here")
    for heading in ("targets", "missing", "needed for", "how to get it"):
        missing.add_column(heading, overflow="fold")
    for things, targets in _by_what_is_missing(report).items():
        names = ", ".join(target.name for target in targets)
        if not things:
            missing.add_row(names, "nothing")
        for thing in things:
            said = thing.for_target(targets[0]) if len(targets) == 1 else thing
            missing.add_row(names, said.what, said.needed_for, said.fix)
            names = ""  # once is enough
        missing.add_section()
    return Group(machine, missing)


def _by_what_is_missing(report: Report) -> dict[tuple[Missing, ...], list[Target]]:
    groups: dict[tuple[Missing, ...], list[Target]] = {}
    for each in report.targets:
        groups.setdefault(each.missing, []).append(each.target)
    return groups


def _phrase(name: str, finding: Finding) -> str:
    if finding.missing is not None:
        return finding.missing
    if finding.failure is not None:
        return f"failed: {finding.failure}"
    if name == "packages":
        wrong = [package for package, fact in finding.facts.items() if not fact["fits"]]
        return f"{len(finding.facts)} needed; wrong or missing: {', '.join(wrong) or 'none'}"
    return "\n".join(
        f"{key.removesuffix('_bytes').replace('_', ' ')}: {_fact(key, value)}"
        for key, value in finding.facts.items()
    )


def _fact(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{value / 1e9:.1f} GB"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
