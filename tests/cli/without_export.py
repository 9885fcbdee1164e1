# SPDX-License-Identifier: Apache-2.0
"""Runs the command line as where only `pip install tc-export` was done."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from tc_export.missing_packages import EXPORT_PACKAGES


class Blocker:
    """Finds none of the packages of `[export]`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if name.split(".")[0] in EXPORT_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def version(name: str) -> str:
    if name.replace("-", "_") in EXPORT_PACKAGES:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)


if __name__ == "__main__":
    installed = importlib.metadata.version
    importlib.metadata.version = version
    sys.meta_path.insert(0, Blocker())
    from tc_export.cli.main import main

    main()
