# SPDX-License-Identifier: Apache-2.0
"""What the process that builds an engine carries beside TensorRT."""

from __future__ import annotations

import sys

from tests.plugins.native import run


def test_the_worker_is_light() -> None:
    run(
        sys.executable,
        "-c",
        "import sys, tc_export.engine.tensorrt.builder.worker\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'onnx'} & sys.modules.keys()\n"
        "assert not heavy, heavy",
    )
