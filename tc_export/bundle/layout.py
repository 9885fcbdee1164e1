# SPDX-License-Identifier: Apache-2.0
"""Where a bundle has what an engine is made of. Paths are relative to the bundle."""

from __future__ import annotations

GRAPH_IO_FILE = "graph_io.json"
README_FILE = "README.md"
MODEL_FILE = "model.onnx"
EMBEDDING_FILE = "embedding.safetensors"
PLUGIN_FOLDER = "plugins"
PLUGIN_FILE = "libtc_tensorrt.so"
PLUGIN_SOURCES = f"{PLUGIN_FOLDER}/source"  # where the device compiles the library itself


def engine_stage(graph: str) -> str:
    """The stage that makes the engine of a graph, here or on the device."""
    return f"{graph}_engine"


def tensorrt_stage(graph: str) -> str:
    """The stage that writes a graph in the form that the device's TensorRT parses."""
    return f"{graph}_tensorrt"


def engine_path(graph: str) -> str:
    """The engine of a graph."""
    return f"engines/{graph}.engine"


def tensorrt_folder(graph: str) -> str:
    """A graph in the form that the device's TensorRT parses, and its weights."""
    return f"tensorrt/{graph}"


def tensorrt_graph(graph: str) -> str:
    """The graph itself, in that form."""
    return f"{tensorrt_folder(graph)}/{MODEL_FILE}"


def plugin_path(architecture: str | None, sm: int | None) -> str:
    """The plugin library of a device."""
    return f"{PLUGIN_FOLDER}/{architecture}-sm{sm}/{PLUGIN_FILE}"
