# SPDX-License-Identifier: Apache-2.0
"""Stands in for TensorRT's Python module in a worker, so that its failures can be had at will.

A copy of it is put on PYTHONPATH under the name of a real module, with `fake.json` beside it:
`version`; `crash`, the name of what goes wrong; `shape` of the one input; `layers`, the lines that
the builder logs; `plugins`, the ops of the network's plugin layers.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_FAKE = json.loads(Path(__file__).with_name("fake.json").read_text())
__version__: str = _FAKE["version"]
if _FAKE["crash"] == "import":
    raise ImportError("libnvinfer.so.10: cannot open shared object file")


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


class BuilderFlag(enum.IntEnum):
    FP16, INT8, TF32 = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class PreviewFeature(enum.IntEnum):
    PROFILE_SHARING_0806, ALIASED_PLUGIN_IO_10_03 = range(2)


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerType(enum.IntEnum):
    CONVOLUTION, PLUGIN_V3 = range(2)


class PluginCapabilityType(enum.IntEnum):
    CORE, BUILD, RUNTIME = range(3)


class IPluginCapability:
    """All that TensorRT 10.3 says of a plugin's parts."""

    op: str


class IPluginV3OneCore(IPluginCapability):
    @property
    def plugin_name(self) -> str:
        return self.op


class ILayer:
    def __init__(self, op: str | None) -> None:
        self.type = LayerType.CONVOLUTION if op is None else LayerType.PLUGIN_V3
        self.op = op


class IPluginV3Layer(ILayer):
    @property
    def plugin(self) -> SimpleNamespace:
        core = IPluginCapability()
        core.op = str(self.op)
        return SimpleNamespace(get_capability_interface=lambda which: core)


class Network:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._layers = [ILayer(None), *map(ILayer, _FAKE["plugins"])]
        self.num_layers = len(self._layers)
        self.num_inputs = 1

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name="x", shape=_FAKE["shape"])


class OnnxParser:
    def __init__(self, network: Network, log: ILogger) -> None:
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        return Path(path).is_file()


class Config:
    """Remembers what it was told, and refuses what the real one does not have."""

    def __init__(self) -> None:
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None
        self.flags = {BuilderFlag.TF32}
        self.previews: set[PreviewFeature] = set()
        self.cache = b""

    def set_preview_feature(self, feature: PreviewFeature, on: bool) -> None:
        self.previews |= {feature} if on else set()

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags -= {flag}

    def add_optimization_profile(self, profile: Any) -> int:
        return -1 if _FAKE["crash"] == "profile" else 0

    def create_timing_cache(self, content: bytes) -> SimpleNamespace | None:
        if content == b"damaged":
            return None
        return SimpleNamespace(content=content, serialize=lambda: content + b"timings ")

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return self._cache


class Builder:
    def __init__(self, log: ILogger) -> None:
        print("chatter of the library")
        self._log = log
        if _FAKE["crash"] == "start":
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> SimpleNamespace:
        return SimpleNamespace(set_shape=lambda name, least, usual, most: None)

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
        assert config.previews == {PreviewFeature.ALIASED_PLUGIN_IO_10_03}
        assert not config.flags
        os.write(1, b"more chatter, past Python\n")
        config.progress_monitor.phase_start("engine", "", 4)
        for step in range(4):
            for _ in self._crash():
                return None
            if not config.progress_monitor.step_complete("engine", step):
                return None
        config.progress_monitor.phase_finish("engine")
        self._log.log(ILogger.Severity.VERBOSE, "Layers:\n" + "\n".join(_FAKE["layers"]))
        return b"an engine"

    def _crash(self) -> Iterator[None]:
        """Do what the test asked for; yields where the builder is to give up."""
        if _FAKE["crash"] == "abort":
            print("terminate called after throwing an instance of 'Fault'", file=sys.stderr)
            os.abort()
        elif _FAKE["crash"] == "memory":
            os.kill(os.getpid(), signal.SIGKILL)
        elif _FAKE["crash"] == "bug":
            raise ZeroDivisionError("a bug")
        elif _FAKE["crash"] == "slow":
            time.sleep(0.2)
        elif _FAKE["crash"] == "build":
            self._log.log(ILogger.Severity.ERROR, "Error Code 10: no implementation for node_gemm")
            yield
