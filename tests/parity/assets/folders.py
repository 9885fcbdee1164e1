# SPDX-License-Identifier: Apache-2.0
"""The small files and the embedding table of a bundle, made as a build makes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.tokenizer import TOKENIZER_FILES, write_tokenizer
from tc_export.dtypes import DType
from tc_export.graph.export import export_embedding
from tc_export.parity.assets.check import compare_assets
from tc_export.parity.assets.comparison import AssetComparison, AssetFindings
from tc_export.stages.assets import COPIED
from tests.repository import DEMO_CHECKPOINT


def copy_demo(folder: Path) -> Path:
    """The demo checkpoint, to be changed."""
    return Path(shutil.copytree(DEMO_CHECKPOINT, folder / "checkpoint"))


def make_assets(
    checkpoint: Path, folder: Path, dtype: DType = DType.FLOAT32
) -> tuple[Path, Checkpoint]:
    """What a bundle has beside its graphs, in a new folder; and the checkpoint that it is of."""
    opened, made = open_checkpoint(checkpoint), folder / "assets"
    made.mkdir()
    for name in {*COPIED, "config.json"} - set(TOKENIZER_FILES):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, made / name)
    write_tokenizer(checkpoint, made)
    export_embedding(opened, dtype, made / "embedding.safetensors")
    return made, opened


def edit_json(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(file.read_text(encoding="utf-8"))
    edit(document)
    file.write_text(json.dumps(document), encoding="utf-8")


def compare(made: Path, checkpoint: Checkpoint, dtype: DType = DType.FLOAT32) -> AssetFindings:
    """All comparisons of a bundle's folder."""
    return compare_assets(made, checkpoint, dtype)


def the_failure(made: Path, checkpoint: Checkpoint) -> AssetComparison:
    """The one comparison that fails."""
    failed = [x for x in compare(made, checkpoint).comparisons if not x.passed]
    assert len(failed) == 1, failed
    return failed[0]
