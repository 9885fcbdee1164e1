# SPDX-License-Identifier: Apache-2.0
"""The report of an examination: what is alike stands once."""

from __future__ import annotations

import io
import json

from rich.console import Console

from tc_export.doctor import Report, TargetReport
from tc_export.doctor.checks import CHECKS, Finding
from tc_export.doctor.missing import find_missing
from tc_export.doctor.report import report_as_json, report_as_tables
from tc_export.targets import list_targets, load_target


def bare_report(*names: str) -> Report:
    """A machine on which nothing is, for targets of these names, or for all."""
    findings = {name: Finding(missing="not here") for name in CHECKS}
    targets = [load_target(name) for name in names] or list_targets()
    return Report(
        findings=findings,
        targets=tuple(
            TargetReport(target=x, missing=tuple(find_missing(x, findings))) for x in targets
        ),
    )


def printed(report: Report, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(report_as_tables(report))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    start = next(i for i, line in enumerate(lines) if "missing here" in line)
    return lines[start:]


def test_targets_that_miss_the_same_share_a_row() -> None:
    lines = printed(bare_report(), 250)
    text = "\n".join(lines)
    for target in list_targets():
        rows = [line for line in lines if target.name in line.replace(",", " ").split()]
        assert len(rows) == 1, target.name
    (jetsons,) = (line for line in lines if "orin-nano-4gb" in line)
    assert "orin-nx" in jetsons
    assert "thor" in jetsons
    assert text.count("a GPU of the target's SM") == 2  # of x86-64 hosts, of aarch64 devices
    assert text.count("--target TARGET") == 5


def test_one_target_is_named() -> None:
    text = "\n".join(printed(bare_report("orin"), 250))
    assert "a GPU of SM 87" in text
    assert "tc-export build --target orin)" in text
    assert "TARGET" not in text


def test_nothing_is_cut_at_80_columns() -> None:
    assert "…" not in "".join(printed(bare_report(), 80))


def test_json_names_every_target_and_its_sm() -> None:
    document = json.loads(json.dumps(report_as_json(bare_report("orin", "thor"))))
    assert document["machine"]["gpus"]["missing"] == "not here"
    for name, sm in (("orin", 87), ("thor", 110)):
        things = document["targets"][name]["missing"]
        assert f"a GPU of SM {sm}" in [thing["what"] for thing in things]
        assert any(f"--target {name}" in thing["fix"] for thing in things)
        assert {thing["needed_for"] for thing in things} == {"plugins", "engine"}
