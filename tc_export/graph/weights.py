# SPDX-License-Identifier: Apache-2.0
"""Attach weights to a traced graph from where they lie, without reading them into memory.

An ONNX external tensor is a file, an offset and a length, and so is a tensor of a safetensors
shard. Where the stored type is the wanted one, the tensor stays in its shard, which must come to
lie beside the graph: both graphs share it. Otherwise it is converted into a file of the graph's
own, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar

import numpy as np
import onnx_ir as ir
import torch

from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import TcExportError

_ALIGNMENT_BYTES = 64
_SHARD_SUFFIX = ".safetensors"

AnyPath = TypeVar("AnyPath", bound=PurePath)


def own_weights(graph: AnyPath) -> AnyPath:
    """The file beside `graph` with the weights that are not stored in the graph's number format."""
    return graph.with_suffix(".weights.bin")


@dataclass(frozen=True, kw_only=True)
class WeightsPlan:
    """Which of a graph's weights stay in the checkpoint's shards, and which are converted.

    Attributes:
        dtype: the graph's number format.
        tensors: where each of its weights lies now, by name.
        names: what each shard of the checkpoint is called beside the graph.
    """

    dtype: DType
    tensors: Mapping[str, TensorLocation]
    names: Mapping[Path, str]

    def stays(self, location: TensorLocation) -> bool:
        """True for a weight that is stored in the graph's number format."""
        return location.dtype == self.dtype

    @property
    def shards(self) -> dict[str, Path]:
        """The shards that must lie beside the graph, by their names there."""
        used = {location.file for location in self.tensors.values() if self.stays(location)}
        return {name: file for file, name in self.names.items() if file in used}

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """Shard and offset of each weight that stays: what the graph will state."""
        return {
            name: (self.names[location.file], location.offset)
            for name, location in self.tensors.items()
            if self.stays(location)
        }

    @property
    def converts(self) -> bool:
        """True where the graph needs a file of its own."""
        return not all(map(self.stays, self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Size of all its weights, as they are stored now."""
        return sum(location.nbytes for location in self.tensors.values())


def plan_weights(checkpoint: Checkpoint, graph: str, dtype: DType) -> WeightsPlan:
    """Find the weights of one graph, whose names begin with its own."""
    tensors = checkpoint.tensors
    return WeightsPlan(
        dtype=dtype,
        tensors={name: x for name, x in tensors.items() if name.startswith(f"{graph}.")},
        names=_name_shards({location.file for location in tensors.values()}),
    )


def _name_shards(files: set[Path]) -> dict[Path, str]:
    """A name for each shard: its own, as far as it can be.

    Shards may be links to files that are called alike, or anything: in the Hugging Face cache they
    are called by their hashes.
    """
    names: dict[Path, str] = {}
    for file in sorted(files):
        stem = file.name.removesuffix(_SHARD_SUFFIX)
        name, count = f"{stem}{_SHARD_SUFFIX}", 1
        while name in names.values():
            count += 1
            name = f"{stem}-{count}{_SHARD_SUFFIX}"
        names[file] = name
    return names


@dataclass
class WeightsReport:
    """What attaching cost on disk."""

    bytes_referenced: int = 0
    bytes_written: int = 0


def attach_weights(
    model: ir.Model,
    plan: WeightsPlan,
    constants: Mapping[str, np.ndarray],
    own_file: Path,
    advance: Callable[[int], None],
) -> WeightsReport:
    """Give every initialiser of `model` its data.

    Args:
        model: a graph traced with fake weights; changed in place.
        plan: where each weight lies, and where it shall be.
        constants: initialisers that are computed, not loaded; stored inside the graph.
        own_file: written beside the graph, where `plan` converts weights.
        advance: called with the bytes of each tensor when it is done.
    """
    if not plan.converts:
        return _attach(model, plan, constants, None, own_file.name, advance)
    with own_file.open("wb") as own:
        return _attach(model, plan, constants, own, own_file.name, advance)


def _attach(
    model: ir.Model,
    plan: WeightsPlan,
    constants: Mapping[str, np.ndarray],
    own: BinaryIO | None,
    own_name: str,
    advance: Callable[[int], None],
) -> WeightsReport:
    report = WeightsReport()
    for name, initializer in model.graph.initializers.items():
        if name in constants:
            initializer.const_value = ir.tensor(constants[name], name=name)
            continue
        if name not in plan.tensors:
            raise TcExportError(f"the traced graph has a weight {name!r} that no one provides")
        location = plan.tensors[name]
        if plan.stays(location):
            shard = plan.names[location.file]
            tensor = _external(name, plan.dtype, location, shard, location.offset, location.nbytes)
            report.bytes_referenced += location.nbytes
        else:
            assert own is not None
            offset, length = _append(own, location.as_tensor().to(plan.dtype.torch))
            tensor = _external(name, plan.dtype, location, own_name, offset, length)
            report.bytes_written += length
        initializer.const_value = tensor
        advance(location.nbytes)
    return report


def _external(
    name: str,
    dtype: DType,
    location: TensorLocation,
    file_name: str,
    offset: int,
    length: int,
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file_name,
        offset,
        length,
        ir.DataType(dtype.onnx),
        shape=ir.Shape(location.shape),
        name=name,
    )


def _append(file: BinaryIO, tensor: torch.Tensor) -> tuple[int, int]:
    """Write a tensor at the next aligned offset; return its offset and length in bytes."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    offset = file.tell()
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
    file.write(raw.data)
    return offset, raw.nbytes
