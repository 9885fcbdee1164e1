# SPDX-License-Identifier: Apache-2.0
"""The checkpoint before is found where it was, and believed only where it is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.unquantised import Unquantised
from tc_export.errors import CheckpointError, UsageError
from tc_export.parity.cost.result import NotMeasured
from tc_export.parity.cost.unquantised import open_unquantised
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.recipes import Recipe
from tests.checkpoint.families import edit_config, edit_weights, save_small

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
RECIPE = Recipe.read(
    {
        "name": "tried",
        "description": "",
        "weights": [{"names": ["*.up_proj.weight"], "format": "int8", "group_size": 16}],
    },
    where="a test",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_small(tmp_path / "source", text=TEXT, dtype=torch.float16)


@pytest.fixture
def quantised(source: Path, tmp_path: Path) -> Checkpoint:
    folder = quantize_checkpoint(open_checkpoint(source), RECIPE, tmp_path / "new").folder
    return open_checkpoint(folder)


def forget(quantised: Checkpoint, **values: Any) -> Checkpoint:
    """The checkpoint with another record of what it was made from, or none."""

    def edit(document: dict[str, Any]) -> None:
        document["quantization_config"].pop("unquantised")
        document["quantization_config"].update(values)

    edit_config(quantised.folder, edit)
    return open_checkpoint(quantised.folder)


def test_a_quantised_checkpoint_says_what_it_was_made_from(
    source: Path, quantised: Checkpoint
) -> None:
    document = json.loads((quantised.folder / "config.json").read_text())
    stated = document["quantization_config"]["unquantised"]
    assert stated == {"folder": str(source), "digest": open_checkpoint(source).digest()}
    assert Unquantised.stated_in(document) == Unquantised(**stated)
    assert Unquantised.stated_in({}) is None


def test_it_is_found_and_has_the_settings_of_the_quantised_one(
    source: Path, quantised: Checkpoint
) -> None:
    edit_config(quantised.folder, lambda document: document.update(temporal={"gamma": 0.25}))
    asked = open_checkpoint(quantised.folder)
    found = open_unquantised(asked, None)
    assert isinstance(found, Checkpoint)
    assert found.folder == source
    assert found.config.model == asked.config.model
    assert found.config.model.temporal.gamma == 0.25


def test_one_that_moved_is_not_measured_until_it_is_named(
    source: Path, quantised: Checkpoint, tmp_path: Path
) -> None:
    moved = Path(shutil.move(source, tmp_path / "moved"))
    found = open_unquantised(quantised, None)
    assert isinstance(found, NotMeasured)
    assert f"no longer at {source}" in found.reason
    assert "--unquantised DIR" in found.reason
    named = open_unquantised(quantised, moved)
    assert isinstance(named, Checkpoint)
    assert named.folder == moved


def test_one_that_has_changed_is_not_believed(source: Path, quantised: Checkpoint) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).view(-1)[0] += 1

    edit_weights(source, spoil)
    found = open_unquantised(quantised, None)
    assert isinstance(found, NotMeasured)
    assert "has changed since" in found.reason
    with pytest.raises(CheckpointError, match="is not the checkpoint that"):
        open_unquantised(quantised, source)


def test_one_that_cannot_be_read_is_said(source: Path, quantised: Checkpoint) -> None:
    (source / "model.safetensors").write_bytes(b"no weights")
    found = open_unquantised(quantised, None)
    assert isinstance(found, NotMeasured)
    assert "model.safetensors" in found.reason
    with pytest.raises(CheckpointError):
        open_unquantised(quantised, source)


@pytest.mark.parametrize(
    "values", [{}, {"unquantised": 7}, {"unquantised": {"folder": ["x"], "digest": "short"}}]
)
def test_without_a_record_it_is_measured_when_named(
    source: Path, quantised: Checkpoint, values: dict[str, Any]
) -> None:
    silent = forget(quantised, **values)
    found = open_unquantised(silent, None)
    assert isinstance(found, NotMeasured)
    assert "does not say what it was quantised from" in found.reason
    assert isinstance(open_unquantised(silent, source), Checkpoint)
    with pytest.raises(CheckpointError, match="is quantised itself"):
        open_unquantised(silent, quantised.folder)


def test_without_a_record_another_model_is_refused(quantised: Checkpoint, tmp_path: Path) -> None:
    other = save_small(
        tmp_path / "other", text=TEXT | {"num_hidden_layers": 1}, dtype=torch.float16
    )
    with pytest.raises(CheckpointError, match="of another model"):
        open_unquantised(forget(quantised), other)


def test_where_nothing_was_quantised_there_is_no_cost(source: Path) -> None:
    plain = open_checkpoint(source)
    assert open_unquantised(plain, None) is None
    with pytest.raises(UsageError, match="is not quantised"):
        open_unquantised(plain, source)
