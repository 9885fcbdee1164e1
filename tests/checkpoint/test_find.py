# SPDX-License-Identifier: Apache-2.0
"""Finding checkpoints in a folder, and nothing that only looks like one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tc_export.checkpoint.find import find_checkpoints
from tests.checkpoint.families import edit_config, save_small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("source") / "small")


def copy(small: Path, place: Path) -> Path:
    return Path(shutil.copytree(small, place))


def test_the_folder_itself_counts_before_those_in_it(small: Path, tmp_path: Path) -> None:
    folder = copy(small, tmp_path / "folder")
    copy(small, folder / "inner")
    assert find_checkpoints(folder) == [folder]


def test_those_right_below_and_in_checkpoints(small: Path, tmp_path: Path) -> None:
    expected = [copy(small, tmp_path / name) for name in ("checkpoints/b", "checkpoints/c", "a")]
    copy(small, tmp_path / "deep" / "er" / "d")
    copy(small, tmp_path / ".hidden")
    assert find_checkpoints(tmp_path) == expected


def test_a_checkpoint_in_shards(small: Path, tmp_path: Path) -> None:
    folder = copy(small, tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert find_checkpoints(tmp_path) == []
    (folder / "model.safetensors.index.json").write_text("{}")
    assert find_checkpoints(tmp_path) == [folder]


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def another_model(folder: Path) -> None:
    edit_config(folder, lambda document: document.update(model_type="bert"))


def a_bundle(folder: Path) -> None:
    edit_config(folder, lambda document: document.update(builder_config={}))


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps([]))


def a_fifo(folder: Path) -> None:
    no_config(folder)
    os.mkfifo(folder / "config.json")


@pytest.mark.parametrize("spoil", [no_weights, no_config, another_model, a_bundle, a_list, a_fifo])
def test_what_is_no_checkpoint_is_passed_over(small: Path, tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    spoil(copy(small, tmp_path / "x"))
    assert find_checkpoints(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path / "none") == []


def test_a_whole_bundle_is_no_checkpoint(bundle: Path) -> None:
    assert find_checkpoints(bundle.parent) == [bundle.parent / "checkpoint"]
