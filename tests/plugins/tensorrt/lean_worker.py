# SPDX-License-Identifier: Apache-2.0
"""Loads the plugin library into the registry of TensorRT's lean runtime, and creates both plugins.

    python lean_worker.py PLUGIN < FIELDS

FIELDS is JSON: for each creator's name, its float32 fields. Prints JSON: the version, what each
creator says of its fields, and what each plugin says of itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt


def describe(registry: Any, name: str, values: dict[str, float]) -> dict[str, Any]:
    creator = registry.get_creator(name, "1", "tc")
    fields = [
        trt.PluginField(key, np.array([value], np.float32), trt.PluginFieldType.FLOAT32)
        for key, value in values.items()
    ]
    collection = trt.PluginFieldCollection(fields)
    plugin = creator.create_plugin("node", collection, trt.TensorRTPhase.RUNTIME)
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return {
        "times": sum(one.name == name for one in registry.all_creators),
        "fields": [field.name for field in creator.field_names],
        "identity": [core.plugin_name, core.plugin_version, core.plugin_namespace],
    }


def main(library: str) -> None:
    logger = trt.Logger()  # the registry reports to it
    registry = trt.get_plugin_registry()
    handle = registry.load_library(library)
    assert handle is not None
    wanted = json.load(sys.stdin)
    plugins = {name: describe(registry, name, values) for name, values in wanted.items()}
    registry.deregister_library(handle)
    after = [name for name in wanted if registry.get_creator(name, "1", "tc") is not None]
    print(json.dumps({"version": trt.__version__, "plugins": plugins, "after": after}))
    del logger


if __name__ == "__main__":
    main(*sys.argv[1:])
