# SPDX-License-Identifier: Apache-2.0
"""Changing a graph as a faulty exporter would have written it, and a bundle's other files."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tc_export.bundle import read_manifest
from tc_export.bundle.layout import graph_path
from tc_export.bundle.manifest import Manifest, write_manifest
from tc_export.checkpoint.reader import Checkpoint
from tc_export.graph.export import MODULE_NOTE


class NothingChanged(Exception):
    """A fault that is none in this checkpoint."""


class Graph:
    """One graph of a bundle, open for changes."""

    def __init__(self, bundle: Path, name: str, checkpoint: Checkpoint) -> None:
        self.path = bundle / graph_path(name)
        self.checkpoint = checkpoint
        self.config = checkpoint.config.model
        self.model = onnx.load(self.path, load_external_data=False)
        self._added = 0

    def save(self) -> None:
        """Write it in its place; a hard link of the original is let go first."""
        self.path.unlink()
        onnx.save(self.model, self.path)

    @property
    def layer(self) -> int:
        """The layer of the decoder that most faults are planted in: neither first nor last."""
        return self.config.text.num_hidden_layers // 2

    def module(self, name: str) -> str:
        """A module of that layer, by its whole name."""
        return f"decoder.layers.{self.layer}.{name}" if name else f"decoder.layers.{self.layer}"

    def nodes(self, module: str, op_type: str | None = None) -> list[NodeProto]:
        """A module's own nodes, in order."""
        return [
            node
            for node in self.model.graph.node
            if _module(node) == module and op_type in (None, node.op_type)
        ]

    def weight(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a weight; it then stands inside the graph.

        Raises:
            NothingChanged: the change leaves this checkpoint's weight as it was.
        """
        found, values = self._stored(name)
        changed = np.ascontiguousarray(change(values.copy()), values.dtype)
        if np.array_equal(changed, values):
            raise NothingChanged(f"{name} of this checkpoint is the same with it")
        found.CopyFrom(numpy_helper.from_array(changed, name))

    def values(self, name: str) -> np.ndarray:
        """What a weight or a constant of the graph holds."""
        return self._stored(name)[1]

    def _stored(self, name: str) -> tuple[TensorProto, np.ndarray]:
        (found,) = (x for x in self.model.graph.initializer if x.name == name)
        if found.data_location != TensorProto.EXTERNAL:
            return found, numpy_helper.to_array(found)
        stored = self.checkpoint.tensors[name].as_array()
        return found, stored.astype(helper.tensor_dtype_to_np_dtype(found.data_type))

    def constant(self, value: np.ndarray) -> str:
        """A constant of the graph, by the name that it gets."""
        name = self._name("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def before(
        self, node: NodeProto, op_type: str, inputs: Sequence[str], **attributes: object
    ) -> str:
        """Insert a node of the same module before `node`; return the name of its result."""
        name = self._name(op_type)
        made = helper.make_node(op_type, list(inputs), [name], name=f"planted_{name}", **attributes)
        made.metadata_props.extend(node.metadata_props)
        self.model.graph.node.insert(self._index(node), made)
        return name

    def after(
        self,
        node: NodeProto,
        op_type: str,
        inputs: Sequence[str],
        *,
        output: int = 0,
        **attributes: object,
    ) -> None:
        """Change an output of a node on its way: `*` among the inputs stands for what it was.

        What read it reads the result.
        """
        name = node.output[output]
        renamed = self._name(name)
        node.output[output] = renamed
        given = [renamed if x == "*" else x for x in inputs]
        made = helper.make_node(op_type, given, [name], name=f"planted_{renamed}", **attributes)
        made.metadata_props.extend(node.metadata_props)
        self.model.graph.node.insert(self._index(node) + 1, made)

    def _index(self, node: NodeProto) -> int:
        return next(i for i, x in enumerate(self.model.graph.node) if x.output[0] == node.output[0])

    def _name(self, what: str) -> str:
        self._added += 1
        return f"{what}.fault{self._added}"


Plant = Callable[[Graph], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and what is expected of the two comparisons.

    Attributes:
        name: in a few words.
        plant: changes a bundle.
        graph: which graph is changed; None where it is a file beside them.
        layer: where it must be localised: a layer, "vision" or "head"; None where it has none.
        patterns: one of these must be named; empty where none is asked for.
        unseen: why a tolerance cannot see it by its nature; None where it must be caught.
    """

    name: str
    plant: Callable[..., None]
    graph: str | None = "decoder"
    layer: Callable[[Graph], int | str | None] = field(default=lambda graph: graph.layer)
    patterns: tuple[str, ...] = ()
    unseen: str | None = None


def copy_bundle(bundle: Path, folder: Path) -> Path:
    """A copy whose files are hard links: whoever changes one unlinks it first."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    return folder


def plant(fault: Fault, bundle: Path, checkpoint: Checkpoint) -> int | str | None:
    """Plant a fault in a copy of a bundle, and bring its manifest up to date.

    Returns:
        Where it must be localised.

    Raises:
        NothingChanged: it is no fault in this checkpoint.
    """
    layer: int | str | None = None
    if fault.graph is None:
        fault.plant(bundle)
    else:
        graph = Graph(bundle, fault.graph, checkpoint)
        layer = fault.layer(graph)
        fault.plant(graph)
        graph.save()
    seal(bundle)
    return layer


def seal(bundle: Path) -> None:
    """Let the manifest list the files as they are."""
    manifest = read_manifest(bundle).model_dump(mode="json")
    for record in manifest["stages"].values():
        for path, file in record["files"].items():
            place = bundle / path
            if place.stat().st_nlink == 1:  # changed: others are links
                content = place.read_bytes()
                file["sha256"] = hashlib.sha256(content).hexdigest()
                file["size_bytes"] = len(content)
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, Manifest.model_validate(manifest))


def _module(node: NodeProto) -> str | None:
    for note in node.metadata_props:
        if note.key == MODULE_NOTE:
            scopes = ast.literal_eval(note.value)
            return str(scopes[-2]) if len(scopes) > 1 else None
    return None
