# SPDX-License-Identifier: Apache-2.0
"""Small graphs that are exported once, by number format and mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import ModelSettings
from tc_export.dtypes import DType
from tc_export.graph.export import export_decoder, export_vision
from tests.checkpoint.families import save_small

LAYERS = 1

Small = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A folder with vision/ and decoder/ by precision and mask, exported once.

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
        export_vision(checkpoint, DType(precision), folder, lambda nbytes: None)
        return folder

    @cache
    def both(precision: str, mask: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{precision}-{mask}")
        checkpoint = open_checkpoint(
            checkpoint_folder(precision),
            ModelSettings.read({"temporal": {"mask": mask}}, where="test"),
        )
        (folder / "vision").symlink_to(vision(precision))
        (folder / "decoder").mkdir()
        export_decoder(checkpoint, DType(precision), folder / "decoder", lambda nbytes: None)
        return folder

    return both
