# SPDX-License-Identifier: Apache-2.0
"""Frames to the vision tower's pixels, as Hugging Face's CLIP image processor does it.

Pad (where the checkpoint says so), resize, crop, rescale, normalise: with Pillow and NumPy alone,
bit for bit what transformers' own Pillow processor gives. Its torchvision processor resizes by
another bicubic filter; checkpoints were trained with Pillow's.

Axes: N frames, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tc_export.config import Config
from tc_export.errors import CheckpointError, UsageError, VideoError

LONGEST_EDGE = 4096
"""Most pixels that a frame is resized or cropped to: several times what any tower takes."""

Pixels = Annotated[int, Field(gt=0, le=LONGEST_EDGE)]
Channels = tuple[float, float, float]
Deviation = Annotated[float, Field(gt=0)]

CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)


class PreprocessConfig(Config):
    """How a frame becomes pixels. Sizes are in pixels, (height, width).

    `resize` as one number is the length of the shorter edge; None leaves the frame as it is.
    `resample` is Pillow's number of the filter. With `pad_to_square` the frame is first padded
    with the mean colour, so that cropping loses nothing.
    """

    resize: Pixels | tuple[Pixels, Pixels] | None
    crop: tuple[Pixels, Pixels] | None
    resample: int = Field(default=Image.Resampling.BICUBIC.value, ge=0, le=5)
    scale: float = Field(default=1 / 255, gt=0)
    mean: Channels = CLIP_MEAN
    std: tuple[Deviation, Deviation, Deviation] = CLIP_STD
    pad_to_square: bool = False


def preprocess(
    frames: Sequence[NDArray[np.uint8]], config: PreprocessConfig
) -> NDArray[np.float32]:
    """Map frames [H, W, 3] to pixel values [N, 3, H', W'].

    Raises:
        VideoError: without a crop, frames of several sizes give pixels of several sizes.
    """
    images = [_resized_and_cropped(frame, config) for frame in frames]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise VideoError(
            f"the frames change their size within the clip: preprocessed they have {sizes}",
            hint="convert the clip to one size first",
        )
    pixels_NHWC = np.stack(images)
    # In float64 and then down, and normalised in float32: the order that transformers rounds in.
    scaled = (pixels_NHWC.astype(np.float64) * config.scale).astype(np.float32)
    normalised = (scaled - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def _resized_and_cropped(
    frame_HWC: NDArray[np.uint8], config: PreprocessConfig
) -> NDArray[np.uint8]:
    if config.pad_to_square:
        frame_HWC = _pad_to_square(frame_HWC, config.mean)
    if config.resize is not None:
        height, width = _target_size(frame_HWC.shape[0], frame_HWC.shape[1], config.resize)
        image = Image.fromarray(frame_HWC)
        frame_HWC = np.asarray(image.resize((width, height), config.resample))
    return frame_HWC if config.crop is None else _centre_crop(frame_HWC, config.crop)


def _pad_to_square(frame_HWC: NDArray[np.uint8], mean: Channels) -> NDArray[np.uint8]:
    height, width, _ = frame_HWC.shape
    side = max(height, width)
    colour = np.array([int(channel * 255) for channel in mean], dtype=np.uint8)
    square = np.broadcast_to(colour, (side, side, 3)).copy()
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = frame_HWC
    return square


def _target_size(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(resize, tuple):
        return resize
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)


def _centre_crop(frame_HWC: NDArray[np.uint8], crop: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the middle out; where the frame is smaller than the crop, black is added around it."""
    (height, width), (crop_height, crop_width) = frame_HWC.shape[:2], crop
    missing_height, missing_width = max(0, crop_height - height), max(0, crop_width - width)
    if missing_height or missing_width:
        above, before = (missing_height + 1) // 2, (missing_width + 1) // 2
        edges = ((above, missing_height - above), (before, missing_width - before), (0, 0))
        frame_HWC = np.pad(frame_HWC, edges)
    top = (frame_HWC.shape[0] - crop_height) // 2
    left = (frame_HWC.shape[1] - crop_width) // 2
    return frame_HWC[top : top + crop_height, left : left + crop_width]


def read_preprocess_config(folder: Path, image_size: int) -> PreprocessConfig:
    """Read how a checkpoint preprocesses frames, in the spellings of transformers 4 and 5.

    What is said of videos goes before what is said of images. A checkpoint that says nothing, as
    LLaVA's original ones, gets CLIP's preprocessing at the tower's `image_size`. LLaVA's
    `image_aspect_ratio: "pad"` in `config.json` pads to a square.

    Raises:
        CheckpointError: a file is not JSON, or asks for what a CLIP processor does not do.
    """
    pads = _read_json(folder / "config.json").get("image_aspect_ratio") == "pad"
    stated = _stated(folder)
    if stated is not None:
        values, where = stated
        return _from_hugging_face(values, pads, where=where)
    return PreprocessConfig(resize=image_size, crop=(image_size, image_size), pad_to_square=pads)


def preprocess_source(folder: Path) -> str:
    """The file, and its part, that says how a checkpoint preprocesses frames."""
    stated = _stated(folder)
    return f"the default preprocessing of {folder}" if stated is None else stated[1]


def _stated(folder: Path) -> tuple[dict[str, Any], str] | None:
    """What the folder says of preprocessing, and where; None where it says nothing."""
    processor = _read_json(folder / "processor_config.json")
    for values, where in (
        (_read_json(folder / "video_preprocessor_config.json"), "video_preprocessor_config.json"),
        (processor.get("video_processor"), "processor_config.json, video_processor"),
        (_read_json(folder / "preprocessor_config.json"), "preprocessor_config.json"),
        (processor.get("image_processor"), "processor_config.json, image_processor"),
    ):
        if values:
            return values, f"{folder / where}"
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in the file, or an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a JSON object")
    return values


def _from_hugging_face(values: Mapping[str, Any], pads: bool, *, where: str) -> PreprocessConfig:
    # `do_pad` means a square only here; LLaVA-NeXT's processor pads batches of tiles by it.
    if str(values.get("image_processor_type", "")).startswith("LlavaImageProcessor"):
        pads = bool(values.get("do_pad", pads))
    crops = values.get("do_center_crop", values.get("crop_size") is not None)
    settings: dict[str, Any] = {
        "resize": _resize(values.get("size"), where) if values.get("do_resize", True) else None,
        "crop": _crop(values.get("crop_size"), where) if crops else None,
        "pad_to_square": pads,
    }
    for ours, theirs in (("resample", "resample"), ("scale", "rescale_factor")):
        if values.get(theirs) is not None:
            settings[ours] = values[theirs]
    if not values.get("do_rescale", True):
        settings["scale"] = 1.0
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if values.get(theirs) is not None:
            settings[ours] = values[theirs]
    if not values.get("do_normalize", True):
        settings |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    try:
        return PreprocessConfig.read(settings, where=where)
    except UsageError as error:
        raise CheckpointError(str(error), hint=error.hint) from error


def _resize(size: Any, where: str) -> Any:
    if isinstance(size, dict):
        if set(size) == {"shortest_edge"}:
            return size["shortest_edge"]
        if set(size) == {"height", "width"}:
            return size["height"], size["width"]
    elif size is not None:
        return size
    raise CheckpointError(
        f"{where}: the size {size} is not supported",
        hint='supported: a number, {"shortest_edge": …} and {"height": …, "width": …}',
    )


def _crop(size: Any, where: str) -> Any:
    if isinstance(size, dict):
        if set(size) == {"height", "width"}:
            return size["height"], size["width"]
    elif size is not None:
        return size, size
    raise CheckpointError(
        f"{where}: the crop_size {size} is not supported",
        hint='supported: a number and {"height": …, "width": …}',
    )
