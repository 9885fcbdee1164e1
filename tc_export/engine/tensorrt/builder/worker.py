# SPDX-License-Identifier: Apache-2.0
"""The process that builds one engine: `python -m tc_export.engine.tensorrt.builder.worker`.

It imports TensorRT's module and nothing else that is heavy. What it says to whoever started it
stands in `messages`; what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from tc_export.engine.tensorrt.bindings import import_tensorrt
from tc_export.engine.tensorrt.builder.messages import Result, Task, describe_error
from tc_export.engine.tensorrt.builder.network import NetworkBuilder
from tc_export.engine.tensorrt.builder.process import fix_addresses
from tc_export.engine.tensorrt.builder.progress import Phases
from tc_export.engine.tensorrt.cuda import compute_capability
from tc_export.engine.tensorrt.flavours import FLAVOURS, Flavour
from tc_export.errors import TcExportError, UnsupportedEnvironment


class Channel:
    """Standard output, ours alone from now on: what libraries print there goes to stderr."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(self, key: str, content: Any) -> bool:
        """Send one message; False where nobody listens any more."""
        try:
            self._pipe.write(json.dumps({key: content}) + "\n")
        except BrokenPipeError:
            return False
        return True


def build(task: Task, phases: Phases) -> Result:
    """Build the engine and write it.

    Raises:
        TcExportError: it cannot be built, or would not be what was asked for.
        OSError: it cannot be written.
    """
    flavour = FLAVOURS[task.flavour]
    trt = import_tensorrt(flavour)
    _check_gpu(flavour, task.compute_capability)
    builder = NetworkBuilder(flavour, trt)
    if task.plugin_library is not None:
        builder.load_plugins(task.plugin_library)
    builder.parse(task.graph)
    plugin_layers = builder.plugin_layers()
    if plugin_layers != dict(task.custom_nodes):
        raise UnsupportedEnvironment(
            f"{builder.name} made plugin layers {plugin_layers} of {task.graph}, which has custom "
            f"nodes {dict(task.custom_nodes)}: the rest would silently run as standard operators",
            hint=f"is {task.plugin_library or 'a plugin library'} the one that this graph needs?",
        )
    config = builder.configure(task.shapes, task.compute_capability, phases)
    cache = None if task.timing_cache is None else Path(task.timing_cache)
    if cache is not None:
        builder.use_timing_cache(config, cache.read_bytes() if cache.exists() else b"")
    engine = builder.build(config)
    with os.fdopen(task.engine, "wb") as file:
        file.write(engine)
    if cache is not None:
        _replace(cache, builder.timings(config))
    return Result(
        version=builder.name,
        plugin_layers=plugin_layers,
        layer_lines=builder.log.layers,
        engine_bytes=engine.nbytes,
        peak_bytes=peak_memory_bytes(),
    )


def _check_gpu(flavour: Flavour, wanted: int | None) -> None:
    """Where the builder serves the GPU that is here, see that there is one, and the right one."""
    if flavour.takes_target and wanted is not None:
        return
    here = compute_capability()
    if wanted not in (None, here):
        raise UnsupportedEnvironment(
            f"{flavour.title} builds for the GPU that is here, which is an SM{here}; "
            f"asked for was SM{wanted}",
            hint="build on the device itself",
        )


def _replace(path: Path, content: memoryview) -> None:
    """Write a file beside its place, and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far.

    From /proc and not from getrusage, which starts with the size of the process that forked us.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Read a task, do it, and say how it went."""
    fix_addresses()
    # Standard error is for what libraries refuse, as plugins do: its last lines go into a message.
    logging.getLogger("tc_export").addHandler(logging.NullHandler())
    channel = Channel()
    task = Task.from_json(sys.stdin.read())
    phases = Phases(lambda fraction: channel.send("progress", fraction))
    try:
        result = build(task, phases)
    except (TcExportError, OSError) as error:
        channel.send("error", describe_error(error))
    else:
        channel.send("result", result.to_json())


if __name__ == "__main__":
    main()
