# SPDX-License-Identifier: Apache-2.0
"""A bundle: a folder that holds all that a device needs, and says itself what it holds.

`manifest` is what it says, `staging` how it comes to be, `opening` how it is checked before it is
used, `verify` how it is checked whole.
"""

from tc_export.bundle.manifest import (
    BundlePath,
    BundleSpec,
    EngineBuild,
    EngineRecord,
    EngineState,
    FileRecord,
    Manifest,
    Profile,
    StageRecord,
    StageResults,
    is_bundle,
    read_manifest,
)
from tc_export.bundle.opening import find_damage, open_bundle
from tc_export.bundle.placement import Placement, place_file
from tc_export.bundle.staging import Staging, open_staging
from tc_export.bundle.verify import Damage, Problem, inspect, locate, verify

__all__ = [
    "BundlePath",
    "BundleSpec",
    "Damage",
    "EngineBuild",
    "EngineRecord",
    "EngineState",
    "FileRecord",
    "Manifest",
    "Placement",
    "Problem",
    "Profile",
    "StageRecord",
    "StageResults",
    "Staging",
    "find_damage",
    "inspect",
    "is_bundle",
    "locate",
    "open_bundle",
    "open_staging",
    "place_file",
    "read_manifest",
    "verify",
]
