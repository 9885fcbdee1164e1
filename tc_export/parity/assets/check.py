# SPDX-License-Identifier: Apache-2.0
"""Compares all that a bundle carries beside graphs with what is made of the checkpoint.

The bundle's files are judged as answering reads them; the truth is what transformers makes of the
checkpoint's folder. No code of the folder is run, and nothing is fetched. What transformers cannot
read is noted, and is no failure.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tc_export.checkpoint.reader import Checkpoint
from tc_export.dtypes import DType
from tc_export.parity.assets.chat import compare_chat, read_theirs
from tc_export.parity.assets.comparison import (
    AssetFindings,
    CannotBeReadError,
    quiet_transformers,
)
from tc_export.parity.assets.embedding import compare_embedding
from tc_export.parity.assets.end_tokens import compare_end_tokens
from tc_export.parity.assets.input_scales import compare_input_scales
from tc_export.parity.assets.pixels import compare_preprocessing
from tc_export.parity.assets.tokens import compare_tokenizer, read_tokenizer


def compare_assets(bundle: Path, checkpoint: Checkpoint, dtype: DType) -> AssetFindings:
    """Compare embedding table and scales of inputs, in `dtype`, and what transformers can read.

    Raises:
        CheckpointError: the bundle's embedding table is no safetensors file.
    """
    findings = AssetFindings([compare_embedding(bundle, checkpoint, dtype)])
    if checkpoint.input_roundings():
        findings.comparisons.append(compare_input_scales(bundle, checkpoint, dtype))
    if find_spec("transformers") is None:
        findings.notes.append(
            "tokenizer, chat template, preprocessing and end tokens: transformers is not "
            "installed, so there is nothing to compare them with"
        )
        return findings
    with quiet_transformers():
        findings.extend(_compare_with_transformers(bundle, checkpoint))
    return findings


def _compare_with_transformers(bundle: Path, checkpoint: Checkpoint) -> AssetFindings:
    findings, folder = AssetFindings(), checkpoint.folder
    theirs: Any | None = None
    try:
        theirs = read_tokenizer(folder)
        findings.extend(compare_tokenizer(bundle, theirs))
        findings.extend(compare_chat(bundle, theirs, read_theirs(folder, theirs)))
    except CannotBeReadError as error:
        findings.notes.append(str(error))
    size = checkpoint.config.model.vision.image_size
    try:
        findings.comparisons.append(compare_preprocessing(bundle, folder, size))
    except CannotBeReadError as error:
        findings.notes.append(str(error))
    try:
        findings.extend(compare_end_tokens(bundle, folder, theirs))
    except CannotBeReadError as error:
        findings.notes.append(str(error))
    return findings
