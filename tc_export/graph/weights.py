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
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from tc_export.checkpoint.quantized import OTHER_PRECISION, SCALES
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError, TcExportError
from tc_export.graph.weights_plan import WeightsPlan

_ALIGNMENT_BYTES = 64


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

    Raises:
        CheckpointError: scales of a quantised weight are none in the graph's format.
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
        assert initializer.shape is not None, "the exporter states every shape"
        shape = initializer.shape
        if plan.stays(location):
            shard = plan.names[location.file]
            tensor = _external(
                name, plan.stored_in(location), shape, shard, location.offset, location.nbytes
            )
            report.bytes_referenced += location.nbytes
        else:
            assert own is not None
            offset, length = _append(own, _converted(name, location, plan.dtype))
            tensor = _external(name, plan.dtype, shape, own_name, offset, length)
            report.bytes_written += length
        initializer.const_value = tensor
        advance(location.nbytes)
    return report


def _external(
    name: str, dtype: DType, shape: ir.Shape, file_name: str, offset: int, length: int
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file_name,
        offset,
        length,
        ir.DataType(dtype.onnx),
        shape=shape,
        name=name,
    )


def _converted(name: str, location: TensorLocation, dtype: DType) -> torch.Tensor:
    """A weight in the graph's format."""
    converted = location.as_tensor().to(dtype.torch)
    if name.endswith(SCALES) and not bool((converted.isfinite() & (converted > 0)).all()):
        raise CheckpointError(
            f"{location.file}: {location.name} has scales that are zero or infinite in {dtype}",
            hint=OTHER_PRECISION,
        )
    return converted


def _append(file: BinaryIO, tensor: torch.Tensor) -> tuple[int, int]:
    """Write a tensor at the next aligned offset; return its offset and length in bytes."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    offset = file.tell()
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
    file.write(raw.data)
    return offset, raw.nbytes
