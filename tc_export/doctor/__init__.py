# SPDX-License-Identifier: Apache-2.0
"""What is on this machine, what each target lacks here, and what mends it.

No probe uses the network, runs longer than its limit, or lets its failure out: that is a finding.
What could crash a process (importing a vendor's bindings, loading a library) is done in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tc_export.doctor.checks import PROBES, Finding, run_probe
from tc_export.doctor.missing import Lack, lacks_of
from tc_export.targets import Target


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole examination."""

    findings: dict[str, Finding]
    lacks: dict[str, tuple[Lack, ...]]  # by target


def examine(targets: Sequence[Target]) -> Report:
    """Look at this machine, and say what each target lacks here."""
    findings = {name: run_probe(probe) for name, probe in PROBES.items()}
    return Report(
        findings=findings,
        lacks={target.name: tuple(lacks_of(target, findings)) for target in targets},
    )
