# SPDX-License-Identifier: Apache-2.0
"""Small graphs that are exported once, by number format and mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tc_export.bundle import place_file
from tc_export.bundle.layout import GRAPH_FOLDER
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import ModelSettings
from tc_export.dtypes import DType
from tests.checkpoint.families import save_small
from tests.exported import export_graph

LAYERS = 1

Small = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A folder with graphs/ by precision and mask, exported once.

    The mask is the decoder's affair: the vision graph is that of the precision.
    """

    @cache
    def checkpoint_folder(precision: str) -> Path:
        folder = tmp_path_factory.mktemp(precision)
        return save_small(
            folder / "checkpoint",
            dtype=DType(precision).torch,
            text={"num_hidden_layers": LAYERS},
        )

    @cache
    def vision(precision: str) -> Path:
        folder = tmp_path_factory.mktemp(f"vision-{precision}")
        checkpoint = open_checkpoint(checkpoint_folder(precision))
        export_graph("vision", checkpoint, DType(precision), folder)
        return folder

    @cache
    def both(precision: str, mask: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{precision}-{mask}")
        settings = ModelSettings.read({"temporal": {"mask": mask}}, where="test")
        checkpoint = open_checkpoint(checkpoint_folder(precision), settings)
        for file in (vision(precision) / GRAPH_FOLDER).glob("vision.*"):
            place_file(file, folder / GRAPH_FOLDER / file.name)
        export_graph("decoder", checkpoint, DType(precision), folder)
        return folder

    return both
