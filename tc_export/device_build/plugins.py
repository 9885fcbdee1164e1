# SPDX-License-Identifier: Apache-2.0
"""Compile a bundle's plugin library on its device, from the sources that the bundle carries."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tc_export.device_build.spec import FOLDER
from tc_export.errors import UnsupportedEnvironment

SCRIPT = f"{FOLDER}/compile_plugins.sh"
_LAST_LINES = 15  # of what the compiler said, in the message


def compile_plugins(bundle: Path, library: str) -> None:
    """Compile `library`, a path in `bundle`, as `finish.sh` does: by the same script.

    Raises:
        UnsupportedEnvironment: no CUDA compiler, no C++ compiler, no headers of TensorRT, or the
            compiler failed.
    """
    ended = subprocess.run(
        ["sh", SCRIPT, library],
        cwd=bundle,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode != 0:
        lines = ended.stdout.strip().splitlines()[-_LAST_LINES:]
        raise UnsupportedEnvironment(
            "the plugins could not be compiled:\n" + "\n".join(f"  {line}" for line in lines),
            hint="run the command again once that is mended; the bundle is as it was",
        )
