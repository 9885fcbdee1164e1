# SPDX-License-Identifier: Apache-2.0
"""Devices as data: what each one has, its software, and the number formats that it can run."""

from tc_export.targets.precision import COMPONENTS, Precision, Precisions, read_precisions
from tc_export.targets.release import (
    SCALES_FOR_BLOCKS,
    Release,
    choose_release,
    other_releases,
)
from tc_export.targets.target import (
    Doubt,
    EngineFlavour,
    Mark,
    Memory,
    Rates,
    Target,
    Toolchain,
    list_targets,
    load_target,
    read_target,
)

__all__ = [
    "COMPONENTS",
    "SCALES_FOR_BLOCKS",
    "Doubt",
    "EngineFlavour",
    "Mark",
    "Memory",
    "Precision",
    "Precisions",
    "Rates",
    "Release",
    "Target",
    "Toolchain",
    "choose_release",
    "list_targets",
    "load_target",
    "other_releases",
    "read_precisions",
    "read_target",
]
