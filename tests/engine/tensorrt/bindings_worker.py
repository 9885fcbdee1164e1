# SPDX-License-Identifier: Apache-2.0
"""Drives the adapter over real Python bindings of TensorRT, whose libraries are stand-ins.

    python bindings_worker.py < CONTRACT

CONTRACT is JSON: for each class of the bindings, what is used of it. For a method that is how many
arguments it is given; for an attribute or an enum's member, null. Prints JSON: the version, what
is missing or has another signature, and what the adapter made of the parts that need no library.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tc_export.engine.tensorrt.bindings import import_tensorrt, new_logger
from tc_export.engine.tensorrt.builder.network import NetworkBuilder, network_flags, new_monitor
from tc_export.engine.tensorrt.builder.progress import Phases
from tc_export.engine.tensorrt.flavours import FLAVOURS
from tc_export.errors import UnsupportedEnvironment


def argument_counts(method: Any, name: str) -> set[int]:
    """How many arguments each overload takes, apart from self: pybind11 writes them down."""
    signatures = re.findall(rf"{name}\(self: [^,)]+,?([^)]*)\) ->", method.__doc__ or "")
    return {len(re.findall(r"\w+: ", signature)) for signature in signatures}


def departures(trt: Any, contract: dict[str, dict[str, int | None]]) -> list[str]:
    """What the bindings lack of the contract, or have otherwise."""
    found = []
    for class_name, names in contract.items():
        owner = getattr(trt, class_name, None)
        for name, arguments in names.items():
            if not hasattr(owner, name):
                found.append(f"{class_name}.{name} is missing")
            elif arguments is not None:
                counts = argument_counts(getattr(owner, name), name)
                if arguments not in counts:
                    found.append(f"{class_name}.{name} takes {counts}, not {arguments}")
    return found


def drive_log(trt: Any) -> dict[str, list[str]]:
    log = new_logger(trt)
    log.log(trt.ILogger.Severity.ERROR, "an error")
    log.log(trt.ILogger.Severity.INTERNAL_ERROR, "a bug")
    log.log(trt.ILogger.Severity.WARNING, "a warning")
    log.log(trt.ILogger.Severity.VERBOSE, "Layers:\nName: a, LayerType: gemm\n\nName: b")
    return {"errors": list(log.errors), "layers": log.layers}


def drive_monitor(trt: Any) -> list[float]:
    told: list[float] = []

    def note(fraction: float) -> bool:
        told.append(fraction)
        return True

    monitor = new_monitor(trt, Phases(note))
    assert isinstance(monitor, trt.IProgressMonitor)
    monitor.phase_start("engine", None, 2)
    monitor.phase_start("graph", "engine", 2)
    assert monitor.step_complete("graph", 0)
    monitor.phase_finish("graph")
    monitor.phase_finish("engine")
    return told


def way_down(trt: Any, base: str, derived: str) -> bool:
    """True where an object of the class `base` can be taken for one of `derived`."""
    instance = getattr(trt, base).__new__(getattr(trt, base))
    instance.__class__ = getattr(trt, derived)
    return isinstance(instance, getattr(trt, derived))


def main() -> None:
    flavour = FLAVOURS["tensorrt"]
    trt = import_tensorrt(flavour)
    contract = json.load(sys.stdin)
    try:
        NetworkBuilder(flavour, trt)
        start = "started"
    except UnsupportedEnvironment as error:
        start = str(error)
    report = {
        "version": trt.__version__,
        "departures": departures(trt, contract),
        "strongly_typed": network_flags(trt),
        "log": drive_log(trt),
        "progress": drive_monitor(trt),
        "ways_down": [
            way_down(trt, "ILayer", "IPluginV3Layer"),
            way_down(trt, "IPluginCapability", "IPluginV3OneCore"),
        ],
        "start": start,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
