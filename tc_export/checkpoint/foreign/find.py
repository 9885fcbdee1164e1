# SPDX-License-Identifier: Apache-2.0
"""Which library quantised a checkpoint, by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from tc_export.checkpoint.foreign.awq import Awq
from tc_export.checkpoint.foreign.compressed_tensors import CompressedTensors
from tc_export.checkpoint.foreign.gptq import Gptq
from tc_export.checkpoint.foreign.modelopt import ModelOpt
from tc_export.checkpoint.foreign.packing import Packing
from tc_export.checkpoint.shards import read_json_object
from tc_export.errors import CheckpointError

QUANT_CONFIG = "hf_quant_config.json"
"""Where ModelOpt says what config.json of other libraries says."""

PACKINGS: Mapping[str, type[Packing]] = MappingProxyType(
    {
        "awq": Awq,
        "gptq": Gptq,
        "compressed-tensors": CompressedTensors,
        "modelopt": ModelOpt,
    }
)
"""By `quant_method`."""

QUANT_METHODS = tuple(PACKINGS)


def find_packing(quantization: object, folder: Path) -> Packing | None:
    """Read what config.json has as `quantization_config`, or else ModelOpt's file beside it.

    The `quant_method` is one of `QUANT_METHODS`.

    Raises:
        CheckpointError: a setting that is not read.
    """
    if isinstance(quantization, Mapping):
        packing = PACKINGS[quantization["quant_method"]]
        return _read(packing, quantization, folder / "config.json")
    beside = folder / QUANT_CONFIG
    if not beside.exists():
        return None
    return _read(ModelOpt, read_json_object(beside).get("quantization"), beside)


def _read(packing: type[Packing], values: Any, file: Path) -> Packing:
    try:
        return packing.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'quantization'}: {problem['msg']}"
            + (f", not {problem['input']!r}" if problem["type"] == "literal_error" else "")
            for problem in error.errors()
        ]
        raise CheckpointError(
            f"{file} says that {packing.library} quantised the checkpoint, in a way that is not "
            "read:\n" + "\n".join(lines),
            hint="give the checkpoint before it was quantised, with --quantize RECIPE",
        ) from error
