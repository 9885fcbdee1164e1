# SPDX-License-Identifier: Apache-2.0
"""Where each tensor of a safetensors file lies, read from its header alone.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length,
little-endian; the header, a JSON object from tensor name to dtype, shape and [begin, end); then
the data, which the tensors cover without gap or overlap. The safetensors library hands out
tensors but not their places in the file, and the exporter needs the places: an ONNX external
tensor is (file, offset, length), so weights never have to be copied.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tc_export.dtypes import DType
from tc_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_AXES = 64  # NumPy's limit


@dataclass(frozen=True)
class TensorLocation:
    """A tensor on disk. `file` is a real file, never a symbolic link."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: DType
    shape: tuple[int, ...]

    def as_bytes(self) -> NDArray[np.uint8]:
        """Map the tensor's bytes, read-only."""
        return self._map("r")

    def as_array(self) -> NDArray[Any]:
        """Map the tensor as an array, read-only; formats that NumPy lacks are of `ml_dtypes`."""
        return self.as_bytes().view(self.dtype.numpy).reshape(self.shape)

    def as_tensor(self) -> Tensor:
        """Map the tensor. Writing to it changes memory and never the file (copy on write)."""
        import torch

        dtype = self.dtype.torch
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=dtype)
        raw = torch.from_numpy(self._map("c"))
        if self.offset % dtype.itemsize:
            raw = raw.clone()  # the file may place a tensor off its natural alignment
        return raw.view(dtype).view(self.shape)

    def _map(self, mode: str) -> NDArray[np.uint8]:
        if self.nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        try:
            # Only this tensor's pages are mapped: a private map of a whole file larger than
            # memory is refused by the kernel.
            return np.memmap(self.file, np.uint8, mode, self.offset, self.nbytes)  # type: ignore[call-overload, no-any-return]
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.file}: the tensor {self.name} can no longer be read ({error})",
                hint="the file changed after it was opened: restore it and start again",
            ) from error


Size = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    """What the header says of one tensor."""

    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: str
    shape: Annotated[list[Size], Field(max_length=MAX_AXES)]
    data_offsets: Annotated[list[Size], Field(min_length=2, max_length=2)]


def read_header(file: Path) -> dict[str, TensorLocation]:
    """Find every tensor of `file`, which must be a real file.

    Raises:
        CheckpointError: the file is no safetensors file, or is damaged; says what and where.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            header_length = _header_length(stream.read(LENGTH_BYTES), size)
            header = _parse_header(stream.read(header_length))
        data_start = LENGTH_BYTES + header_length
        locations = [_locate(file, name, value, data_start) for name, value in header.items()]
        _check_cover(locations, data_start, size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    except _DamagedError as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file: {error}",
            hint="download it again, or save the checkpoint again",
        ) from error
    return {location.name: location for location in locations}


class _DamagedError(Exception):
    """What is wrong inside a file; its name is added by `read_header`."""


def _header_length(prefix: bytes, size: int) -> int:
    if len(prefix) < LENGTH_BYTES:
        raise _DamagedError(f"it has {size} bytes, fewer than the {LENGTH_BYTES} that start one")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > MAX_HEADER_BYTES:
        raise _DamagedError(
            f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are used"
        )
    if length > size - LENGTH_BYTES:
        raise _DamagedError(f"its header claims {length} bytes, but the whole file has {size}")
    return length


def _parse_header(header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"its header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise _DamagedError("its header is not a JSON object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _DamagedError("its __metadata__ is not an object of strings")
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _DamagedError(f"its header has the same name twice: {', '.join(twice)}")
    return result


def _locate(file: Path, name: str, value: Any, data_start: int) -> TensorLocation:
    try:
        entry = _Entry.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise _DamagedError(f"the tensor {name!r}: {where} {problem['msg']}") from error
    dtype = DType.from_safetensors(entry.dtype)
    if dtype is None:
        known = ", ".join(DType.safetensors_codes())
        raise _DamagedError(
            f"the tensor {name!r} has the unknown dtype {entry.dtype!r}; known: {known}"
        )
    begin, end = entry.data_offsets
    needed = math.prod(entry.shape) * dtype.bits // 8
    if end - begin != needed:
        raise _DamagedError(
            f"the tensor {name!r} of shape {entry.shape} and dtype {entry.dtype} needs {needed} "
            f"bytes, but its offsets {entry.data_offsets} hold {end - begin}"
        )
    return TensorLocation(
        name=name,
        file=file,
        offset=data_start + begin,
        nbytes=needed,
        dtype=dtype,
        shape=tuple(entry.shape),
    )


def _check_cover(locations: list[TensorLocation], data_start: int, size: int) -> None:
    """The tensors must cover the data exactly: no gap, no overlap, nothing missing or left over."""
    reached, previous = data_start, "the header"
    for location in sorted(locations, key=lambda location: (location.offset, location.nbytes)):
        if location.offset != reached:
            kind = "overlaps with" if location.offset < reached else "leaves a gap after"
            raise _DamagedError(f"the tensor {location.name!r} {kind} {previous}")
        reached, previous = reached + location.nbytes, repr(location.name)
    if reached != size:
        state = "it is truncated" if reached > size else "it has bytes that belong to no tensor"
        raise _DamagedError(f"{state}: its header describes {reached} bytes, and it has {size}")
