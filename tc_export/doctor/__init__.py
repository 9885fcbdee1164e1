# SPDX-License-Identifier: Apache-2.0
"""What is on this machine, what is missing here for each target, and how to get it.

No check uses the network, runs longer than its limit, or lets its failure out: that is a finding.
What could crash a process (importing a vendor's bindings, loading a library) is done in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tc_export.doctor.checks import CHECKS, Finding, run_check
from tc_export.doctor.missing import Missing, find_missing
from tc_export.targets import Target


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """A target, and everything that is missing for it here."""

    target: Target
    missing: tuple[Missing, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole examination."""

    findings: dict[str, Finding]  # by check
    targets: tuple[TargetReport, ...]


def examine(targets: Sequence[Target]) -> Report:
    """Look at this machine, and say what is missing here for each target."""
    findings = {name: run_check(check) for name, check in CHECKS.items()}
    return Report(
        findings=findings,
        targets=tuple(
            TargetReport(target=target, missing=tuple(find_missing(target, findings)))
            for target in targets
        ),
    )
