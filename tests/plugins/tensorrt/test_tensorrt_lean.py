# SPDX-License-Identifier: Apache-2.0
"""The plugin registry of TensorRT 11.4 (lean runtime) loads the library and makes both plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tc_export.contracts.ops import CONTRACTS, PLUGIN_NAMESPACE, PLUGIN_VERSION
from tests.plugins.native import fetched
from tests.plugins.tensorrt.graphs import ATTRIBUTES


def test_the_registry_creates_both_plugins(host_plugin: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("lean_worker.py")), str(host_plugin)],
        input=json.dumps(ATTRIBUTES),
        env=os.environ | {"PYTHONPATH": str(fetched("tensorrt-lean"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["version"].startswith("11.4.")
    assert report["plugins"] == {
        op.name: {
            "times": 1,
            "fields": list(op.attributes),
            "identity": [op.name, PLUGIN_VERSION, PLUGIN_NAMESPACE],
        }
        for op in CONTRACTS
    }
    assert report["after"] == []
