# SPDX-License-Identifier: Apache-2.0
"""Whole checkpoints: every tensor against transformers' own model, and every way to be unfit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tc_export.checkpoint import reader
from tc_export.checkpoint.reader import Checkpoint, empty_model, open_checkpoint
from tc_export.config import (
    AttentionMask,
    ModelSettings,
    TemporalConfig,
    VisionFeatures,
    VisionSettings,
)
from tc_export.digests import Remembered
from tc_export.errors import CheckpointError
from tc_export.model.positions import Clip, Text, lay_out
from tc_export.model.tc_llava import TcLlava
from tests.checkpoint.families import (
    FAMILIES,
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    edit_config,
    edit_weights,
    rename_weights,
    save_small,
    small_model,
)

STOCK = ModelSettings(temporal=TemporalConfig(gamma=0.0, mask=AttentionMask.CAUSAL))


def module_pairs(ours: TcLlava, theirs: PreTrainedModel) -> list[tuple[str, nn.Module, nn.Module]]:
    """Each part of our model and the same part of transformers', found by attribute."""
    tower, their_tower = ours.vision.vision_tower, theirs.model.vision_tower
    language = theirs.model.language_model
    return [
        ("embeddings", tower.embeddings, their_tower.embeddings),
        ("pre_layernorm", tower.pre_layernorm, their_tower.pre_layrnorm),
        *((f"vision {i}", a, their_tower.encoder.layers[i]) for i, a in enumerate(tower.layers)),
        ("projector", ours.vision.multi_modal_projector, theirs.model.multi_modal_projector),
        ("embed_tokens", ours.embed_tokens, language.embed_tokens),
        *((f"layer {i}", a, language.layers[i]) for i, a in enumerate(ours.decoder.layers)),
        ("norm", ours.decoder.norm, language.norm),
        ("lm_head", ours.decoder.lm_head, theirs.lm_head),
    ]


def assert_same_weights(ours: TcLlava, theirs: PreTrainedModel) -> None:
    compared = 0
    for name, mine, other in module_pairs(ours, theirs):
        expected = other.state_dict()
        actual = mine.state_dict()
        assert actual.keys() == expected.keys(), name
        for key, value in actual.items():
            assert value.dtype == expected[key].dtype, f"{name}.{key}"
            assert torch.equal(value, expected[key]), f"{name}.{key}"
            compared += 1
    assert compared == len(ours.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_saved(
    tmp_path: Path, family: str, shard_size: str, dtype: torch.dtype
) -> None:
    theirs = small_model(family, dtype=dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = open_checkpoint(tmp_path)
    files = {location.file for location in checkpoint.tensors.values()}
    assert (len(files) > 3) == (shard_size == "20KB")
    ours = checkpoint.load_model(dtype)
    assert_same_weights(ours, theirs)
    assert not ours.training
    # The frequencies stay exact, where converting transformers' model rounds them.
    exact = small_model(family).model.language_model.rotary_emb.inv_freq
    assert ours.decoder.inv_freq.equal(exact)
    assert not any(tensor.is_meta for tensor in (*ours.parameters(), *ours.buffers()))


# Prefixes as older versions wrote them, from today's; the first that fits is taken.
OLD_SPELLINGS = {
    "4.36 to 4.51": {"vision_tower.": "vision_tower.vision_model.", "": ""},
    "in memory since 4.52": {
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.vision_model.",
        "": "model.",
    },
    "in memory, 5": {
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
        "": "model.",
    },
    "parts": {
        "language_model.lm_head.": "language_model.lm_head.",
        "language_model.model.": "language_model.",
        "": "",
    },
}


@pytest.mark.parametrize("spelling", OLD_SPELLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_older_spellings(tmp_path: Path, family: str, spelling: str) -> None:
    theirs = small_model(family)
    theirs.save_pretrained(tmp_path)
    rename_weights(tmp_path, OLD_SPELLINGS[spelling])
    assert_same_weights(open_checkpoint(tmp_path).load_model(), theirs)


def test_buffers_that_older_versions_stored_are_dropped(tmp_path: Path) -> None:
    save_small(tmp_path)
    rename_weights(tmp_path, OLD_SPELLINGS["4.36 to 4.51"])
    before = open_checkpoint(tmp_path).digest()

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        for layer in range(2):
            name = f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[name] = torch.ones(8)

    edit_weights(tmp_path, edit)
    assert open_checkpoint(tmp_path).digest() == before


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_is_the_embedding(tmp_path: Path, stored: bool) -> None:
    theirs = small_model(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    embedding = "language_model.model.embed_tokens.weight"
    if stored:
        edit_weights(
            tmp_path, lambda t: t.update({"language_model.lm_head.weight": t[embedding].clone()})
        )
    checkpoint = open_checkpoint(tmp_path)
    model = checkpoint.load_model()
    assert_same_weights(model, theirs)
    assert model.decoder.lm_head.weight is model.embed_tokens.weight
    assert checkpoint.tensors["decoder.lm_head.weight"].name == embedding
    totals: list[int] = []
    checkpoint.check_values(lambda _, total: totals.append(total))
    stored = {location.name: location.nbytes for location in checkpoint.tensors.values()}
    assert totals[-1] == sum(stored.values()), "the tied head is read once"


def test_a_head_that_is_stored_apart_but_tied_by_the_config_is_an_error(tmp_path: Path) -> None:
    save_small(tmp_path)
    edit_config(tmp_path, lambda document: document.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the same"):
        open_checkpoint(tmp_path)


def frames(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def pooling_stated(document: dict[str, Any]) -> None:
    document["pooling"] = {"stride": 1}


def features_left_open(document: dict[str, Any]) -> None:
    del document["vision_feature_select_strategy"]


FULL = {"vision_feature_select_strategy": "full"}
ASKED_FULL = STOCK.model_copy(update={"vision": VisionSettings(features=VisionFeatures.FULL)})


@pytest.mark.parametrize(
    ("options", "edit", "asked"),
    [
        ({}, pooling_stated, STOCK),
        ({}, None, STOCK),
        ({"vision_feature_layer": 1}, None, STOCK),
        ({"vision_feature_layer": -1}, None, STOCK),
        (FULL, None, STOCK),
        (FULL, features_left_open, ASKED_FULL),
    ],
)
@torch.no_grad()
def test_stock_llava_gives_the_same_logits(
    tmp_path: Path,
    options: dict[str, Any],
    edit: Callable[[dict[str, Any]], None] | None,
    asked: ModelSettings,
) -> None:
    """gamma = 0 with the causal mask is transformers' LLaVA, image and all: it does not pool."""
    theirs = small_model("llava", **options)
    theirs.save_pretrained(tmp_path)
    if edit:
        edit_config(tmp_path, edit)
    ours = open_checkpoint(tmp_path, asked).load_model()
    visual = 16 + int(options == FULL)
    tokens = torch.tensor([[1, 5, *[IMAGE_TOKEN] * visual, 7, 8, 9]])
    expected = theirs(input_ids=tokens, pixel_values=frames(1)).logits
    layout, _ = lay_out([Text(2), Clip(1, visual), Text(3)], ours.config.temporal)
    length = tokens.shape[1]
    actual, _ = ours.decoder(
        ours.embed(tokens, frames(1), IMAGE_TOKEN),
        torch.from_numpy(layout.position_ids)[None],
        torch.from_numpy(layout.temporal_ids)[None],
        torch.from_numpy(layout.kv_end)[None],
        torch.arange(length)[None],
        ours.new_cache(1, length),
    )
    # Both compute in float32; they differ in the order of sums only.
    assert (actual - expected).abs().max() <= 16 * torch.finfo().eps * expected.abs().max()


@pytest.mark.parametrize("mode", ["average", "max"])
@torch.no_grad()
def test_next_video_pools_as_transformers_does(tmp_path: Path, mode: str) -> None:
    theirs = small_model("llava_next_video", spatial_pool_mode=mode)
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.video_token_id == VIDEO_TOKEN
    actual = checkpoint.load_model().vision(frames(3))
    features = theirs.model.get_video_features(frames(3)[None]).pooler_output
    expected = torch.cat(list(features)).reshape(actual.shape)
    assert (actual - expected).abs().max() <= 16 * torch.finfo().eps * expected.abs().max()


def test_opening_reads_no_weights_and_the_empty_model_takes_no_memory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_small(tmp_path))
    model = empty_model(checkpoint.config.model)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.state_dict().keys() == checkpoint.tensors.keys()


def test_loading_converts_the_weights_and_leaves_the_files_alone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_small(tmp_path))
    before = checkpoint.digest()
    double = checkpoint.load_model(torch.float64)
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    with torch.no_grad():
        for parameter in checkpoint.load_model().parameters():
            parameter.zero_()
    assert checkpoint.digest() == before


def change_weight(folder: Path) -> None:
    edit_weights(folder, lambda t: t["multi_modal_projector.linear_2.bias"][3:4].add_(1e-6))


DIGEST_CHANGES = {
    "a weight": change_weight,
    "the method": lambda f: edit_config(f, lambda d: d.update(temporal={"gamma": 0.5})),
    "the rope": lambda f: edit_config(
        f, lambda d: d["text_config"]["rope_parameters"].update(rope_theta=5.0)
    ),
    "an end token": lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 9}'),
    "the image token": lambda f: edit_config(f, lambda d: d.update(image_token_index=1)),
}


@pytest.mark.parametrize("change", DIGEST_CHANGES)
def test_the_digest_changes_with_what_is_used(tmp_path: Path, change: str) -> None:
    before = open_checkpoint(save_small(tmp_path)).digest()
    assert len(before) == 64
    DIGEST_CHANGES[change](tmp_path)
    assert open_checkpoint(tmp_path).digest() != before


def test_the_digest_does_not_change_with_sharding_or_place(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "a")
    small_model().save_pretrained(tmp_path / "b", max_shard_size="20KB")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    digests = {open_checkpoint(tmp_path / name).digest() for name in "abc"}
    assert len(digests) == 1


class TestALargeCheckpoint:
    """It is read once, and its digest then remembered as long as no file of it changes."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(reader, "LARGE_BYTES", 1000)

    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        small_model().save_pretrained(tmp_path / "large", max_shard_size="20KB")
        for shard in (tmp_path / "large").glob("*.safetensors"):
            os.utime(shard, (1_000_000_000, 1_000_000_000))
        return tmp_path / "large"

    def digest(self, folder: Path) -> tuple[str, bool]:
        """The digest, and whether the weights were read for it."""
        told: list[int] = []
        found = open_checkpoint(folder).digest(lambda done, total: told.append(done))
        return found, bool(told)

    def test_it_is_read_once(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, read = self.digest(large)
        assert read
        assert self.digest(large) == (first, False)
        monkeypatch.setattr(reader, "recall", Remembered)
        assert self.digest(large) == (first, True)

    def test_a_changed_shard_is_not_believed(self, large: Path) -> None:
        before, _ = self.digest(large)
        shard = sorted(large.glob("*.safetensors"))[1]
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        after, read = self.digest(large)
        assert read
        assert after != before

    def test_another_setting_is_not_believed(self, large: Path) -> None:
        before, _ = self.digest(large)
        edit_config(large, lambda document: document.update(temporal={"gamma": 0.25}))
        after, read = self.digest(large)
        assert read
        assert after != before

    def test_tensors_that_change_places_are_not_believed(self, tmp_path: Path) -> None:
        """The file may be the same: what lies where in it is said by its header."""
        checkpoint = open_checkpoint(save_small(tmp_path / "one"))
        os.utime(tmp_path / "one" / "model.safetensors", (1_000_000_000, 1_000_000_000))
        names = [f"decoder.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
        places = [checkpoint.tensors[name] for name in names]
        swapped = checkpoint.tensors | dict(zip(names, reversed(places), strict=True))
        assert replace(checkpoint, tensors=swapped).digest() != checkpoint.digest()

    def test_a_file_that_was_written_just_now_is_not_remembered(self, large: Path) -> None:
        shard = next(large.glob("*.safetensors"))
        os.utime(shard, ns=(0, time.time_ns() + 10**18))
        self.digest(large)
        assert self.digest(large)[1]

    def test_a_file_that_is_gone(self, large: Path) -> None:
        checkpoint = open_checkpoint(large)
        next(large.glob("*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match="can no longer be read"):
            checkpoint.digest()


@pytest.mark.parametrize("method", [Checkpoint.digest, Checkpoint.check_values])
def test_progress_counts_every_byte_once(tmp_path: Path, method: Any) -> None:
    checkpoint = open_checkpoint(save_small(tmp_path))
    steps: list[tuple[int, int]] = []
    method(checkpoint, lambda done, total: steps.append((done, total)))
    total = sum(location.nbytes for location in checkpoint.tensors.values())
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.norm.weight"][-1] = torch.nan
        tensors["multi_modal_projector.linear_1.weight"][0, :2] = -torch.inf
        tensors["multi_modal_projector.linear_2.bias"][1] = torch.inf
        # Follows the feature layer: never used, so never looked at.
        tensors["vision_tower.post_layernorm.weight"][0] = torch.nan

    save_small(tmp_path, dtype=dtype)
    open_checkpoint(tmp_path).check_values()
    edit_weights(tmp_path, edit)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).check_values()
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  language_model.model.norm.weight: 1 of 40 values",
        "  multi_modal_projector.linear_1.weight: 2 of 1280 values",
        "  multi_modal_projector.linear_2.bias: 1 of 40 values",
    ]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
        del tensors["vision_tower.pre_layrnorm.bias"]
        tensors["lora.weight"] = torch.ones(1)
        tensors["language_model.model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
        tensors["language_model.model.layers.2.mlp.up_proj.weight"] = torch.ones(56, 40)
        tensors["multi_modal_projector.linear_2.weight"] = torch.ones(40, 41)
        tensors["multi_modal_projector.linear_1.bias"] = torch.ones(40, dtype=torch.int8)
        tensors["model.language_model.norm.weight"] = torch.ones(40)

    save_small(tmp_path)
    edit_weights(tmp_path, edit)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert "(llava); 8 problems" in first
    assert sorted(lines) == [
        "  dtype of multi_modal_projector.linear_1.bias: int8, "
        "expected one of float64, float32, float16, bfloat16",
        "  missing: language_model.model.layers.1.mlp.up_proj.weight",
        "  missing: vision_tower.pre_layrnorm.bias",
        "  shape of multi_modal_projector.linear_2.weight: (40, 41), expected (40, 40)",
        "  stored more than once: language_model.model.norm.weight, "
        "model.language_model.norm.weight",
        "  unused: language_model.model.layers.0.self_attn.q_norm.weight",
        "  unused: language_model.model.layers.2.mlp.up_proj.weight",
        "  unused: lora.weight",
    ]


def test_a_newline_is_known_only_to_the_families_that_have_it(tmp_path: Path) -> None:
    save_small(tmp_path, "llava_next_vicuna")
    edit_config(tmp_path, lambda document: document.update(model_type="llava"))
    with pytest.raises(CheckpointError, match="unused: image_newline"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 7, 100, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, kept_bytes: int) -> None:
    small_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=f"{shard.name} is not a whole"):
        open_checkpoint(tmp_path)


def test_no_such_folder_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; expected a folder"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    save_small(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        open_checkpoint(tmp_path)


def test_the_read_config_is_kept_whole(tmp_path: Path) -> None:
    save_small(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert open_checkpoint(str(tmp_path)).config.document == document
