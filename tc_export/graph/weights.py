# SPDX-License-Identifier: Apache-2.0
"""Attach weights to a traced graph from where they lie, without reading them into memory.

An ONNX external tensor is a file, an offset and a length, and so is a tensor of a safetensors
shard. Where the stored type is the wanted one, the shard is hard-linked beside the graph and
referenced; otherwise, or where the file system cannot link, the tensor is converted or copied into
`weights.bin`, one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import TcExportError

OWN_WEIGHTS_FILE = "weights.bin"
_ALIGNMENT_BYTES = 64


@dataclass
class WeightsReport:
    """What attaching cost on disk."""

    linked_files: set[str] = field(default_factory=set)
    bytes_referenced: int = 0
    bytes_written: int = 0


def attach_weights(
    model: ir.Model,
    weights: Mapping[str, TensorLocation],
    constants: Mapping[str, np.ndarray],
    dtype: DType,
    folder: Path,
    advance: Callable[[int], None],
) -> WeightsReport:
    """Give every initialiser of `model` its data.

    Args:
        model: a graph traced with fake weights; changed in place.
        weights: where each initialiser lies, by name.
        constants: initialisers that are computed, not loaded; stored inside the graph.
        dtype: floating-point type of the graph's weights.
        folder: where the graph will be saved; shards are linked into it.
        advance: called with the bytes of each tensor when it is done.
    """
    report = WeightsReport()
    own_path = folder / OWN_WEIGHTS_FILE
    with own_path.open("wb") as own:
        for name, initializer in model.graph.initializers.items():
            if name in constants:
                initializer.const_value = ir.tensor(constants[name], name=name)
                continue
            if name not in weights:
                raise TcExportError(f"the traced graph has a weight {name!r} that no one provides")
            location = weights[name]
            if location.dtype == dtype and _link(location, folder, report):
                tensor = _external(name, dtype, location, location.file.name, location.offset)
                report.bytes_referenced += location.nbytes
            else:
                offset, length = _append(own, location.as_tensor().to(dtype.torch))
                tensor = _external(name, dtype, location, OWN_WEIGHTS_FILE, offset, length)
                report.bytes_written += length
            initializer.const_value = tensor
            advance(location.nbytes)
    if report.bytes_written == 0:
        own_path.unlink()
    return report


def _external(
    name: str,
    dtype: DType,
    location: TensorLocation,
    file_name: str,
    offset: int,
    length: int | None = None,
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file_name,
        offset,
        location.nbytes if length is None else length,
        ir.DataType(dtype.onnx),
        shape=ir.Shape(location.shape),
        name=name,
    )


def _link(location: TensorLocation, folder: Path, report: WeightsReport) -> bool:
    """Hard-link the tensor's shard into `folder`; False where the file system cannot."""
    if location.file.name in report.linked_files:
        return True
    try:
        os.link(location.file, folder / location.file.name)
    except OSError:
        return False
    report.linked_files.add(location.file.name)
    return True


def _append(file: BinaryIO, tensor: torch.Tensor) -> tuple[int, int]:
    """Write a tensor at the next aligned offset; return its offset and length in bytes."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    offset = file.tell()
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
    file.write(raw.data)
    return offset, raw.nbytes
