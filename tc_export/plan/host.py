# SPDX-License-Identifier: Apache-2.0
"""Memory of this machine, as Linux states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tc_export.errors import UnsupportedEnvironment

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """In bytes. The total never changes while a machine runs; what is available does."""

    total: int
    available: int


def host_memory(
    meminfo: Path = MEMINFO, cgroup_limits: Sequence[Path] = CGROUP_LIMITS
) -> HostMemory:
    """Memory of this machine, or of the container that we run in where that has less.

    Raises:
        UnsupportedEnvironment: the system does not say.
    """
    try:
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines if len(words) > 1}
        total, available = kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError) as error:
        raise UnsupportedEnvironment(
            f"this system does not say how much memory it has ({meminfo}: {error})",
            hint="state total_gb in a target's file of your own (docs/adding-a-target.md)",
        ) from error
    for path in cgroup_limits:
        total = min(total, _limit(path) or total)
    return HostMemory(total=total, available=min(available, total))


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or `max`: no limit
        return None
