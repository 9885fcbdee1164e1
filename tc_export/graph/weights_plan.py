# SPDX-License-Identifier: Apache-2.0
"""Which weights of a graph stay in the checkpoint's shards, and which are converted.

Known from the checkpoint's headers alone: a build asks before it loads anything that converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from tc_export.checkpoint.quantized import QuantizedWeight, graph_parts
from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType

MOST_OF_FEW_BITS = 8

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
        tensors: where each of its weights lies now, by name; a quantised one lies in two places.
        quantized: those of its weights that are stored in four or eight bits.
        names: what each shard of the checkpoint is called beside the graph.
    """

    dtype: DType
    tensors: Mapping[str, TensorLocation]
    quantized: Mapping[str, QuantizedWeight]
    names: Mapping[Path, str]

    def stays(self, location: TensorLocation) -> bool:
        """True for a weight that is stored in the graph's number format, or in few bits."""
        return location.dtype == self.stored_in(location)

    def stored_in(self, location: TensorLocation) -> DType:
        """The format that the graph has a weight in."""
        return location.dtype if location.dtype.bits <= MOST_OF_FEW_BITS else self.dtype

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
    weights = {name: x for name, x in checkpoint.tensors.items() if name.startswith(f"{graph}.")}
    return WeightsPlan(
        dtype=dtype,
        tensors=dict(part for name, x in weights.items() for part in graph_parts(name, x)),
        quantized={name: x for name, x in weights.items() if isinstance(x, QuantizedWeight)},
        names=_name_shards({location.file for location in checkpoint.stored().values()}),
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
