# SPDX-License-Identifier: Apache-2.0
"""Preprocessing against transformers' own Pillow processors, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tc_export.errors import CheckpointError, VideoError
from tc_export.runtime.preprocess import PreprocessConfig, preprocess, read_preprocess_config

SIZES = [(48, 64), (64, 48), (33, 33), (31, 97), (200, 51), (7, 5), (224, 224)]
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
    "clip, crop larger than the edge": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 57, "width": 44}
    ),
    "clip, other filter and numbers": CLIPImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size=32,
        resample=2,
        rescale_factor=1 / 127.5,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.1, 0.2, 0.3],
    ),
    "clip, no resize": CLIPImageProcessorPil(do_resize=False, crop_size=50),
    "clip, neither rescaled nor normalised": CLIPImageProcessorPil(
        do_rescale=False, do_normalize=False
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 40, "width": 60}),
    "llava, padded": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, crop_size=56),
    "llava, not padded": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers_bit_for_bit(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    config = read_preprocess_config(tmp_path, image_size=336)
    frames = [noise(*size), noise(*size)[::-1].copy()]
    ours = preprocess(frames, config)
    theirs = np.stack(processor(frames, input_data_format="channels_last")["pixel_values"])
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 60))
def test_any_size_equals_transformers(height: int, width: int, edge: int, crop: int) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop)
    config = PreprocessConfig(resize=edge, crop=(crop, crop))
    frame = noise(height, width)
    theirs = processor([frame], input_data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(preprocess([frame], config), np.stack(theirs))


def _write(folder: Path, **files: dict[str, Any]) -> None:
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))


def test_llava_next_is_read_without_its_tiles_and_without_padding(tmp_path: Path) -> None:
    LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(tmp_path)
    config = read_preprocess_config(tmp_path, image_size=224)
    assert config == PreprocessConfig(resize=336, crop=(336, 336))


def test_spellings_of_older_files(tmp_path: Path) -> None:
    """The file of openai/clip-vit-large-patch14-336 has plain numbers, and no rescaling in it."""
    _write(
        tmp_path,
        preprocessor_config={
            "crop_size": 336,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 336,
        },
    )
    config = read_preprocess_config(tmp_path, image_size=224)
    assert config == PreprocessConfig(resize=336, crop=(336, 336))


def test_videos_go_before_images_and_files_of_their_own_before_the_processors(
    tmp_path: Path,
) -> None:
    def sized(size: int) -> dict[str, Any]:
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}

    expected = []
    steps = [
        {"processor_config": {"image_processor": sized(10)}},
        {"preprocessor_config": sized(20)},
        {"processor_config": {"image_processor": sized(10), "video_processor": sized(30)}},
        {"video_preprocessor_config": sized(40)},
    ]
    for step in steps:
        _write(tmp_path, **step)
        expected.append(read_preprocess_config(tmp_path, image_size=336).resize)
    assert expected == [10, 20, 30, 40]


@pytest.mark.parametrize(("ratio", "pads"), [("pad", True), ("anyres", False), (None, False)])
def test_a_checkpoint_that_says_nothing_gets_clips_own(
    ratio: str | None, pads: bool, tmp_path: Path
) -> None:
    _write(tmp_path, config={"image_aspect_ratio": ratio} if ratio else {})
    config = read_preprocess_config(tmp_path, image_size=336)
    assert config == PreprocessConfig(resize=336, crop=(336, 336), pad_to_square=pads)


def test_padding_of_the_original_llava_is_in_its_config(tmp_path: Path) -> None:
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56).save_pretrained(tmp_path)
    _write(tmp_path, config={"image_aspect_ratio": "pad"})
    frame = noise(30, 71)
    reference = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, crop_size=56)
    np.testing.assert_array_equal(
        preprocess([frame], read_preprocess_config(tmp_path, image_size=56)),
        np.stack(reference([frame], input_data_format="channels_last")["pixel_values"]),
    )


def test_a_config_survives_json() -> None:
    config = PreprocessConfig(resize=(4, 5), crop=None, mean=(0.1, 0.2, 0.3), pad_to_square=True)
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert PreprocessConfig.read(stored, where="the bundle") == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": {"longest_edge": 9}}, r"the size \{'longest_edge': 9\} is not supported"),
        ({"size": 9, "crop_size": {"height": 3}}, "the crop_size .* is not supported"),
        ({"size": -4}, "resize"),
        ({"size": 4, "resample": 77}, "resample"),
        ({"size": 4, "image_std": [1, 1, 0]}, "std"),
        ({"size": 4, "image_mean": [1, 1]}, "mean"),
    ],
)
def test_what_is_not_supported_is_named(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    _write(tmp_path, preprocessor_config=values)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_preprocess_config(tmp_path, image_size=336)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_damaged_files_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_preprocess_config(tmp_path, image_size=336)


def test_frames_of_several_sizes_need_a_crop() -> None:
    frames = [noise(48, 64), noise(48, 80)]
    assert preprocess(frames, PreprocessConfig(resize=20, crop=(20, 20))).shape == (2, 3, 20, 20)
    with pytest.raises(VideoError, match="change their size"):
        preprocess(frames, PreprocessConfig(resize=20, crop=None))
