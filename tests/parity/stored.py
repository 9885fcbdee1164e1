# SPDX-License-Identifier: Apache-2.0
"""A model in memory as the checkpoint that it could have come from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import save_file

from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.safetensors_file import read_header
from tc_export.model.tc_llava import TcLlava


def store(model: TcLlava, folder: Path) -> Checkpoint:
    """Write the weights under the model's own names, each by itself, and open them."""
    file = folder / "weights.safetensors"
    save_file({name: x.detach().clone() for name, x in model.state_dict().items()}, file)
    config: Any = SimpleNamespace(model=model.config)
    return Checkpoint(folder=folder, config=config, tensors=read_header(file.resolve()))
