# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: pixel values of noise in odd sizes, against transformers' own processor.

Pillow's processor is meant, which checkpoints were trained with: torchvision's resizes by another
filter. What a checkpoint says of videos counts before what it says of images, as when a question
is answered. LLaVA-NeXT's tiles are left out there, and so they are here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tc_export.checkpoint.shards import read_json_object
from tc_export.dtypes import DType
from tc_export.errors import TcExportError
from tc_export.parity.assets.comparison import (
    AssetComparison,
    CannotBeReadError,
    agreed,
    differs,
    read_by_transformers,
)
from tc_export.runtime.preprocess import preprocess, read_preprocess_config

NAME = "preprocessing"

SIZES = ((48, 64), (64, 48), (33, 33), (31, 97), (200, 51), (7, 5), (337, 511))
"""Heights and widths of pictures."""

ROUNDINGS = 4
"""Roundings of float32 that two ways to the same pixel may differ by. One level of 256, which is
the least that another picture would make, is ten thousand times more."""

_PLAIN = ("", "CLIP", "LlavaNext")


def compare_preprocessing(bundle: Path, checkpoint: Path, image_size: int) -> AssetComparison:
    """Compare pixel values by the bundle's files with those by the checkpoint's.

    `image_size` is the tower's.

    Raises:
        CannotBeReadError: transformers has no such processor.
    """
    processor, source = _processor(checkpoint, image_size)
    note = f"transformers' {type(processor).__name__}, {source}"
    try:
        config = read_preprocess_config(bundle, image_size)
    except TcExportError as error:
        return differs(NAME, str(error), "pixel values", note)
    random = np.random.default_rng(0)
    for height, width in SIZES:
        frame = random.integers(0, 256, (height, width, 3), np.uint8)
        where = f"a picture of {height} x {width}; {note}"
        try:
            found = preprocess([frame], config)
        except (TcExportError, ValueError) as error:
            return differs(NAME, str(error), "pixel values", where)
        expected = read_by_transformers(NAME, partial(_run, processor, frame))
        problem = _difference(found, expected, where)
        if problem is not None:
            return problem
    return agreed(NAME, f"pictures of {len(SIZES)} sizes", note)


def _run(processor: Any, frame: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.stack(
        processor([frame], input_data_format="channels_last")["pixel_values"]
    )
    return pixels


def _difference(found: np.ndarray, expected: np.ndarray, where: str) -> AssetComparison | None:
    if found.shape != expected.shape:
        return differs(NAME, f"pixels {found.shape}", f"{expected.shape}", where)
    errors = np.abs(found.astype(np.float64) - expected)
    limit = ROUNDINGS * DType.FLOAT32.epsilon * float(np.abs(expected).max())
    if float(errors.max()) <= limit:
        return None
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    place = ", ".join(str(int(i)) for i in worst[1:])
    return differs(
        NAME,
        f"{found[worst]:.6g} at [{place}]",
        f"{expected[worst]:.6g}",
        f"{where}; {int((errors > limit).sum())} of {errors.size} values differ",
    )


def _processor(folder: Path, image_size: int) -> tuple[Any, str]:
    """transformers' processor for frames, and where its values are from."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pads = _json(folder / "config.json").get("image_aspect_ratio") == "pad"
    values, source = _stated(folder)
    if values is None:
        values = {"size": {"shortest_edge": image_size}, "crop_size": image_size}
    kind = str(values.get("image_processor_type") or values.get("video_processor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    kind = kind.removesuffix("ImageProcessor").removesuffix("VideoProcessor")
    if kind == "Siglip":
        made: Any = SiglipImageProcessorPil
    elif kind == "Llava" or (pads and kind in _PLAIN):
        made, values = LlavaImageProcessorPil, {"do_pad": pads, **values}
    elif kind.removesuffix("Video") in _PLAIN:
        made = CLIPImageProcessorPil
    else:
        raise CannotBeReadError(f"{NAME}: no processor to compare with for {kind}, {source}")
    return read_by_transformers(NAME, lambda: made.from_dict(dict(values))), source


def _stated(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What the checkpoint says of preprocessing, and in which file."""
    processor = _json(folder / "processor_config.json")
    for values, source in (
        (_json(folder / "video_preprocessor_config.json"), "video_preprocessor_config.json"),
        (processor.get("video_processor"), "processor_config.json, video_processor"),
        (_json(folder / "preprocessor_config.json"), "preprocessor_config.json"),
        (processor.get("image_processor"), "processor_config.json, image_processor"),
    ):
        if values:
            return values, source
    return None, "CLIP's preprocessing, since the checkpoint says none"


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
