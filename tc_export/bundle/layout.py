# SPDX-License-Identifier: Apache-2.0
"""Where a bundle has what an engine is made of. Paths are relative to the bundle.

All graphs lie in one folder with all weights, which are there once: the checkpoint's shards by
their own names, and beside a graph those that were converted for it.
"""

from __future__ import annotations

GRAPH_IO_FILE = "graph_io.json"
GRAPH_FOLDER = "graphs"
GOLDEN_FOLDER = "golden"
README_FILE = "README.md"
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


def graph_path(graph: str) -> str:
    """A graph as ONNX Runtime reads it."""
    return f"{GRAPH_FOLDER}/{graph}.onnx"


def tensorrt_graph_path(graph: str) -> str:
    """The same graph as the device's TensorRT parses it; it refers to the same weights."""
    return f"{GRAPH_FOLDER}/{graph}.tensorrt.onnx"


def shard_path(name: str) -> str:
    """A file of the checkpoint, which graphs refer to."""
    return f"{GRAPH_FOLDER}/{name}"


def is_weights(path: str) -> bool:
    """True for a file that graphs refer to."""
    return path.startswith(f"{GRAPH_FOLDER}/") and not path.endswith(".onnx")


def golden_folder(graph: str) -> str:
    """Golden inputs and outputs of a graph."""
    return f"{GOLDEN_FOLDER}/{graph}"


def engine_path(graph: str) -> str:
    """The engine of a graph."""
    return f"engines/{graph}.engine"


def plugin_path(architecture: str | None, sm: int | None) -> str:
    """The plugin library of a device."""
    return f"{PLUGIN_FOLDER}/{architecture}-sm{sm}/{PLUGIN_FILE}"
