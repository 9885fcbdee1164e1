# SPDX-License-Identifier: Apache-2.0
"""Finding the weights in a folder: shards, links, and indices that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tc_export.checkpoint.shards import find_tensors
from tc_export.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def make_shards(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.full((2,), 1.0), "b": torch.full((2,), 2.0)}, folder / "1.safetensors")
    save_file({"c": torch.full((2,), 3.0)}, folder / "2.safetensors")
    write_index(folder, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def values(folder: Path) -> dict[str, float]:
    return {name: place.as_tensor()[0].item() for name, place in find_tensors(folder).items()}


def test_shards_are_joined(tmp_path: Path) -> None:
    assert values(make_shards(tmp_path)) == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_a_single_file_counts_over_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.full((2,), 9.0)}, make_shards(tmp_path) / "model.safetensors")
    assert values(tmp_path) == {"a": 9.0}


def test_links_are_followed_to_the_real_file(tmp_path: Path) -> None:
    blobs, snapshot = make_shards(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    places = find_tensors(snapshot)
    assert {place.file for place in places.values()} == {
        (blobs / name).resolve() for name in ("1.safetensors", "2.safetensors")
    }
    assert not any(place.file.is_symlink() for place in places.values())
    assert values(snapshot) == values(blobs)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_broken_link_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"{name} (does not exist|cannot be read)"):
        find_tensors(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../1.safetensors",
        "/etc/x.safetensors",
        "sub/1.safetensors",
        "./1.safetensors",
        "..\\1.safetensors",
        "..",
        "1.bin",
        "",
        5,
        None,
    ],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    folder = make_shards(tmp_path / "inner")
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    write_index(folder, {"a": shard})
    with pytest.raises(CheckpointError, match=r"names the shard .* in the same folder"):
        find_tensors(folder)


@pytest.mark.parametrize("shard", ["3.safetensors", "a\0.safetensors", "x" * 300 + ".safetensors"])
def test_a_missing_shard_is_named(tmp_path: Path, shard: str) -> None:
    folder = make_shards(tmp_path)
    write_index(folder, {"a": "1.safetensors", "b": "1.safetensors", "c": shard})
    with pytest.raises(CheckpointError, match=f"{shard[:3]}.* does not exist"):
        find_tensors(folder)


def test_an_index_of_other_shards_lists_every_difference(tmp_path: Path) -> None:
    folder = make_shards(tmp_path)
    write_index(folder, {"a": "1.safetensors", "b": "2.safetensors", "d": "2.safetensors"})
    with pytest.raises(CheckpointError) as caught:
        find_tensors(folder)
    message = str(caught.value)
    assert "b is in 1.safetensors, but the index says 2.safetensors" in message
    assert "c is in 2.safetensors, but the index says None" in message
    assert "d is not in 2.safetensors" in message
    assert "  a is" not in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b"\xff"]
)
def test_a_bad_index_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=INDEX):
        find_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-2.bin"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=f"only pickled weights .*{name}") as caught:
        find_tensors(tmp_path)
    assert "save_pretrained" in str(caught.value.hint)


def test_shards_without_an_index_are_named(tmp_path: Path) -> None:
    (make_shards(tmp_path) / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"neither .* it has 1\.safetensors, 2\.safetensors"):
        find_tensors(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        find_tensors(tmp_path)


def test_weights_that_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        find_tensors(tmp_path)
