# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint and its exported graphs, for tests of the graph, the engine and parity."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tc_export.bundle import place_file
from tc_export.bundle.layout import GRAPH_FOLDER, graph_path, shard_path
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import GRAPHS
from tc_export.dtypes import DType
from tc_export.graph.export import GraphReport, export_decoder, export_vision
from tc_export.graph.weights_plan import plan_weights
from tests.checkpoint.families import edit_config, save_small


@dataclass(frozen=True)
class Exported:
    """`folder` holds graphs/, as a bundle does."""

    checkpoint: Checkpoint
    folder: Path
    vision: GraphReport
    decoder: GraphReport

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config.model

    def copy(self, folder: Path) -> Path:
        """A copy whose graphs may be changed; the weights are the same files."""
        (folder / GRAPH_FOLDER).mkdir(parents=True)
        for file in (self.folder / GRAPH_FOLDER).iterdir():
            if file.suffix == ".onnx":
                shutil.copy(file, folder / GRAPH_FOLDER)
            else:
                os.link(file, folder / GRAPH_FOLDER / file.name)
        return folder

    def graph(self, name: str) -> Path:
        return self.folder / graph_path(name)


def export_graph(name: str, checkpoint: Checkpoint, dtype: DType, folder: Path) -> GraphReport:
    """Export a graph to where a bundle at `folder` has it, with all of its weights."""
    path = folder / graph_path(name)
    for shard, file in plan_weights(checkpoint, name, dtype).shards.items():
        if not (folder / shard_path(shard)).exists():
            place_file(file, folder / shard_path(shard))
    path.parent.mkdir(exist_ok=True)
    return {"vision": export_vision, "decoder": export_decoder}[name](
        checkpoint, dtype, path, lambda nbytes: None
    )


def export_small(
    folder: Path,
    *,
    family: str = "llava",
    stored: torch.dtype = torch.float32,
    precision: DType = DType.FLOAT32,
    temporal: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    kv: str = "16",
) -> Exported:
    """Save a small checkpoint of `family`, and export it."""
    source = save_small(folder / "checkpoint", family, dtype=stored, text=text)
    settings = {"gamma": 0.5, **(temporal or {})}
    cache = {} if kv == "16" else {"cache": {"kv": kv}}
    edit_config(source, lambda document: document.update(temporal=settings, **cache))
    checkpoint = open_checkpoint(source)
    reports = [export_graph(name, checkpoint, precision, folder) for name in GRAPHS]
    return Exported(checkpoint, folder, *reports)
