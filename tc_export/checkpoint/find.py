# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a folder: each a folder with a LLaVA's `config.json` and safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tc_export.checkpoint.hf_config import CONFIG, read_family
from tc_export.checkpoint.shards import INDEX, SINGLE, read_json_object
from tc_export.errors import CheckpointError

COLLECTION = "checkpoints"
_OF_BUNDLES = "builder_config"  # a key that only a bundle's config.json has


def find_checkpoints(folder: Path) -> list[Path]:
    """The folder itself if it is a checkpoint, else those right below it and in `checkpoints`.

    Only names of files and `config.json` are read, and what cannot be read is passed over.
    """
    if _is_checkpoint(folder):
        return [folder]
    inner = [*_folders(folder / COLLECTION), *_folders(folder)]
    return [path for path in inner if _is_checkpoint(path)]


def _folders(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    yield from (folder / name for name in names if not name.startswith("."))


def _is_checkpoint(folder: Path) -> bool:
    config = folder / CONFIG
    try:
        if not any((folder / name).is_file() for name in (SINGLE, INDEX)) or not config.is_file():
            return False
        document = read_json_object(config)
        read_family(document, config)
    except (OSError, CheckpointError):
        return False
    return _OF_BUNDLES not in document
