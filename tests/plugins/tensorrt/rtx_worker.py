# SPDX-License-Identifier: Apache-2.0
"""Parses and builds one graph with TensorRT-RTX, in a process of its own.

    python rtx_worker.py PLUGIN MODEL MOST_TOKENS SM,SM,... aliased|unaliased

Its only libraries are Python's own and TensorRT-RTX's. It prints JSON: what the parser made, and
for each SM the engine's size, the builder's layer lines and its errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as trt


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps all messages."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.messages.append((severity, message))

    def take_errors(self) -> list[str]:
        return [text for severity, text in self.messages if severity <= trt.ILogger.Severity.ERROR]

    def layer_lines(self) -> list[str]:
        lines = "\n".join(text for _, text in self.messages).splitlines()
        return [line for line in lines if line.startswith("Name: ") and "LayerType: " in line]


def build(
    log: Log, builder: Any, network: Any, sm: str, most: int, aliased: bool
) -> dict[str, Any]:
    """Build an engine for one SM, with S from 1 to `most`."""
    log.messages.clear()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, aliased)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tensor.shape:
            shapes = [[size if size >= 0 else s for size in tensor.shape] for s in (1, most, most)]
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0), sm
    engine = builder.build_serialized_network(network, config)
    return {
        "engine_bytes": 0 if engine is None else engine.nbytes,
        "layers": log.layer_lines(),
        "errors": log.take_errors(),
    }


def main(plugin: str, model: str, most: str, sms: str, aliased: str) -> None:
    log = Log()
    registry = trt.get_plugin_registry()
    builder = trt.Builder(log)
    assert registry.load_library(plugin) is not None
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(Path(model).read_bytes())
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    report = {
        "creators": [creator.name for creator in registry.all_creators],
        "parsed": parsed,
        "errors": log.take_errors(),
        "layer_types": [str(layer.type).rpartition(".")[2] for layer in layers],
        "outputs": {out.name: [list(out.shape), out.dtype.name] for out in outputs},
        "engines": {
            sm: build(log, builder, network, sm, int(most), aliased == "aliased")
            for sm in sms.split(",")
            if parsed
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
