# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint and its exported graphs, for tests of the graph, the engine and parity."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.config import ModelConfig
from tc_export.dtypes import DType
from tc_export.graph.export import GraphReport, export_decoder, export_vision
from tests.checkpoint.families import edit_config, save_small


@dataclass(frozen=True)
class Exported:
    """`folder` holds vision/ and decoder/."""

    checkpoint: Checkpoint
    folder: Path
    vision: GraphReport
    decoder: GraphReport

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config.model

    def copy(self, folder: Path) -> Path:
        """A copy whose graphs may be changed; the weights are the same files."""
        for name in ("vision", "decoder"):
            (folder / name).mkdir(parents=True)
            for file in (self.folder / name).iterdir():
                if file.suffix == ".onnx":
                    shutil.copy(file, folder / name)
                else:
                    os.link(file, folder / name / file.name)
        return folder


def export_small(
    folder: Path,
    *,
    family: str = "llava",
    stored: torch.dtype = torch.float32,
    precision: DType = DType.FLOAT32,
    temporal: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Exported:
    """Save a small checkpoint of `family`, and export it."""
    source = save_small(folder / "checkpoint", family, dtype=stored, text=text)
    settings = {"gamma": 0.5, **(temporal or {})}
    edit_config(source, lambda document: document.update(temporal=settings))
    checkpoint = open_checkpoint(source)
    reports = []
    for name, export in (("vision", export_vision), ("decoder", export_decoder)):
        (folder / name).mkdir()
        reports.append(export(checkpoint, precision, folder / name, lambda nbytes: None))
    return Exported(checkpoint, folder, *reports)
