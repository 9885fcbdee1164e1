# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the LLaVA family whose language model is quantised as a library does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.foreign.packers import Matrix, Parts, Scheme, round_to_nearest

_VIEWS = {
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
}
Change = Callable[[dict[str, torch.Tensor]], object]


def tensor(array: np.ndarray) -> torch.Tensor:
    """The array for PyTorch, formats that NumPy lacks included."""
    array = np.array(array, order="C")
    if array.dtype in _VIEWS:
        plain, dtype = _VIEWS[array.dtype]
        return torch.from_numpy(array.view(plain)).view(dtype)
    return torch.from_numpy(array)


def is_projection(name: str) -> bool:
    """True for the matrices of decoder layers, as they are called on the disk."""
    return "language_model" in name and name.endswith("_proj.weight")


def packed(
    source: Path,
    folder: Path,
    scheme: Scheme,
    chosen: Callable[[str], bool] = is_projection,
    scales: Any = np.float16,
) -> dict[str, Matrix]:
    """Write `source` with its matrices quantised to `folder`; what each became, by its old name."""
    made: dict[str, Matrix] = {}

    def pack(name: str, weight: np.ndarray) -> Parts | None:
        if not chosen(name):
            return None
        made[name] = round_to_nearest(weight, scheme, scales)
        return scheme.pack(made[name])

    write(source, folder, {"quantization_config": scheme.config}, pack)
    return made


def write(
    source: Path,
    folder: Path,
    config: Mapping[str, Any],
    pack: Callable[[str, np.ndarray], Parts | None],
) -> Path:
    """Write `source` to `folder`, with more in config.json and other tensors for some weights."""
    shutil.copytree(source, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        parts = pack(name, weight.float().numpy()) if weight.dim() == 2 else None
        if parts is None:
            tensors[name] = weight
        else:
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}.{part}": tensor(array) for part, array in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(config)))
    return folder
