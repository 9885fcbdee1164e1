# SPDX-License-Identifier: Apache-2.0
"""One matrix that a library quantised, where it lies; and all of a checkpoint's put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tc_export.checkpoint.foreign.packing import Packing
from tc_export.checkpoint.foreign.unpacked import Misfit, Unpacked
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.model.weight_shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedWeight:
    """A weight [N, K] as the tensors of its layer.

    `name` is the one that it would have on the disk in floating point; `parts` are the layer's
    tensors that the library's table names, by the last part of theirs.
    """

    name: str
    packing: Packing
    parts: Mapping[str, TensorLocation]
    shape: Shape

    @property
    def dtype(self) -> DType:
        """The format of the numbers, their zero points subtracted."""
        return self.packing.dtype

    @property
    def file(self) -> Path:
        """Where its first part lies."""
        return next(iter(self.parts.values())).file

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def in_groups(self, size: int | None) -> Unpacked:
        """The weight as it is stored, with a row of scales for so many channels, or for all.

        Raises:
            CheckpointError: its bytes are not what the configuration says, or make no such groups.
        """
        try:
            return self.packing.unpack(self.parts, self.shape).in_groups(size, self.dtype)
        except Misfit as error:
            raise self._wrong(error) from error

    def as_tensor(self) -> Tensor:
        """The weight [N, K] in float32.

        Raises:
            CheckpointError: its bytes are not what the configuration says.
        """
        return self._unpack().widened()

    def _unpack(self) -> Unpacked:
        try:
            return self.packing.unpack(self.parts, self.shape)
        except Misfit as error:
            raise self._wrong(error) from error

    def _wrong(self, error: Misfit) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.name}: {error}", hint=_HINT)


_HINT = "download it again; if it is whole, give the checkpoint before it was quantised"


def join_packed(
    on_disk: Mapping[str, TensorLocation], packing: Packing, folder: Path
) -> dict[str, TensorLocation | PackedWeight]:
    """Put the tensors of each quantised layer together under the name of its weight.

    What the table names and a weight is not made of goes; the rest stays.

    Raises:
        CheckpointError: a layer's tensors do not fit each other or the configuration, or none is
            quantised.
    """
    layers: dict[str, dict[str, TensorLocation]] = {}
    joined: dict[str, TensorLocation | PackedWeight] = {}
    for name, location in on_disk.items():
        layer, _, part = name.rpartition(".")
        if part in packing.table:
            layers.setdefault(layer, {})[part] = location
        else:
            joined[name] = location
    problems: list[str] = []
    packed = 0
    for layer, parts in layers.items():
        name = f"{layer}.weight"
        if not packing.is_packed(parts):
            if "weight" in parts:
                joined[name] = parts["weight"]
            continue
        packed += 1
        found = list(packing.misfits(parts))
        if name in joined:
            found.append("weight is there in floating point too")
        try:
            shape = packing.shape(parts) if not found else ()
        except Misfit as error:
            found.append(str(error))
        if found:
            problems += [f"  {layer}: {problem}" for problem in found]
        else:
            joined[name] = PackedWeight(name, packing, parts, shape)
    if not packed:
        problems.append(f"  no layer has {', '.join(x for x in packing.table if x != 'weight')}")
    if problems:
        raise CheckpointError(
            f"{folder} has not what its configuration says ({packing.library}, "
            f"{packing.description}):\n" + "\n".join(problems),
            hint=_HINT,
        )
    return joined
