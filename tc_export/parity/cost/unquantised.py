# SPDX-License-Identifier: Apache-2.0
"""Finds the checkpoint that a quantised one was made from, and sees that it is that one."""

from __future__ import annotations

from pathlib import Path

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.unquantised import Unquantised
from tc_export.errors import CheckpointError, UsageError
from tc_export.parity.cost.result import NotMeasured

OPTION = "--unquantised DIR"


def open_unquantised(quantised: Checkpoint, given: Path | None) -> Checkpoint | NotMeasured | None:
    """Open what a checkpoint was quantised from: where the user says, or where it says itself.

    None where nothing was quantised. Of a place that the checkpoint states nothing is demanded:
    where it is gone, or has changed since, the reason is given back.

    Raises:
        CheckpointError: the folder that the user named cannot be used, or is another checkpoint.
        UsageError: the user named one, and nothing was quantised.
    """
    if quantised.config.document.get("quantization_config") is None:
        if given is not None:
            raise UsageError(
                f"{quantised.folder} is not quantised: there is nothing to compare it with",
                hint="leave --unquantised out",
            )
        return None
    stated = Unquantised.stated_in(quantised.config.document)
    if given is not None:
        return _open(quantised, given, stated)
    if stated is None:
        return NotMeasured(
            f"{quantised.folder} does not say what it was quantised from: {OPTION} does"
        )
    if not Path(stated.folder).is_dir():
        return NotMeasured(
            f"the unquantised checkpoint is no longer at {stated.folder}: {OPTION} says where it is"
        )
    try:
        return _open(quantised, Path(stated.folder), stated)
    except CheckpointError as error:
        return NotMeasured(f"{error}: {OPTION} says where that one is")


def _open(quantised: Checkpoint, folder: Path, stated: Unquantised | None) -> Checkpoint:
    """Open the folder with the settings that the quantised model is used with."""
    asked = quantised.config.model.settings
    opened = open_checkpoint(folder)
    if opened.config.document.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder} is quantised itself", hint="give the checkpoint before it was quantised"
        )
    if stated is not None and opened.digest() != stated.digest:
        raise CheckpointError(
            f"{folder} is not the checkpoint that {quantised.folder} was quantised from, or it "
            "has changed since",
            hint=f"give that one with {OPTION}",
        )
    opened = open_checkpoint(folder, asked)
    if opened.config.model != quantised.config.model:
        raise CheckpointError(
            f"{folder} is of another model than {quantised.folder}: their configurations differ",
            hint=f"give the checkpoint that was quantised with {OPTION}",
        )
    return opened
