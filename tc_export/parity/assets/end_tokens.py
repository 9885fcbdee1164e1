# SPDX-License-Identifier: Apache-2.0
"""The tokens that end an answer, against those at which transformers' `generate` stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tc_export.checkpoint.hf_config import read_config
from tc_export.errors import TcExportError
from tc_export.parity.assets.comparison import (
    AssetFindings,
    agreed,
    differs,
    read_by_transformers,
)

NAME = "end tokens"


def compare_end_tokens(bundle: Path, checkpoint: Path, theirs: Any | None) -> AssetFindings:
    """Compare the bundle's end tokens; `theirs` is transformers' tokenizer, where it has one.

    Raises:
        CannotBeReadError: transformers cannot read the checkpoint's configuration.
    """
    expected, source = _of_transformers(checkpoint)
    try:
        found = sorted(read_config(bundle).eos_token_ids)
    except TcExportError as error:
        return AssetFindings([differs(NAME, str(error), expected, source)])
    notes = []
    if not expected:
        expected = sorted(read_config(checkpoint).eos_token_ids)
        notes = [f"{NAME}: transformers' generate would stop at none, and ours at {expected}"]
        source = "the default of its text model"
    if theirs is not None and theirs.eos_token_id not in (None, *expected):
        own = f"{theirs.eos_token_id} ({theirs.eos_token})"
        notes.append(
            f"{NAME}: the tokenizer's own, {own}, is none of {expected}: "
            "neither transformers' generate nor an answer of ours stops there"
        )
    if found != expected:
        return AssetFindings([differs(NAME, found, expected, source)], notes)
    return AssetFindings([agreed(NAME, str(found), source)], notes)


def _of_transformers(checkpoint: Path) -> tuple[list[int], str]:
    """Where `from_pretrained` of a model takes its generation settings from, in the same order."""
    from transformers import GenerationConfig

    folder = str(checkpoint)
    try:
        found: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        source = "generation_config.json"
    except OSError:
        found = read_by_transformers(
            NAME,
            lambda: GenerationConfig.from_pretrained(
                folder,
                config_file_name="config.json",
                _from_model_config=True,
                local_files_only=True,
            ),
        )
        source = "config.json"
    ids = found.eos_token_id
    return sorted(ids if isinstance(ids, list) else [] if ids is None else [ids]), source
