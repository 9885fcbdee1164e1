# SPDX-License-Identifier: Apache-2.0
"""All that answering reads beside the graphs, read and tried once without them.

What would fail, or be senseless, at every question is found here: ids that the embedding does not
have, frames that do not become what the tower takes, a template without a place for the clip.

Axes: N frames, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tc_export.bundle import Profile
from tc_export.checkpoint.hf_config import CONFIG, GENERATION_CONFIG, CheckpointConfig, read_config
from tc_export.checkpoint.shards import read_json_object
from tc_export.errors import CheckpointError, UsageError
from tc_export.model.positions import Clip
from tc_export.runtime.preprocess import preprocess, preprocess_source, read_preprocess_config
from tc_export.runtime.prompt import VISUAL_PLACEHOLDERS, PromptBuilder
from tc_export.runtime.template import find_template
from tc_export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer

QUESTION = "What is shown?"
FRAME_SIZES = ((53, 37), (37, 53))
"""Rows and columns of the frames that are tried: odd, upright and lying."""

LARGEST_PIXEL = 100.0
SMALLEST_SPREAD = 0.01
"""Normalised pixels are of the size of 1: beyond these, mean, std or factor is not what it says."""


def rehearse(folder: Path, profile: Profile) -> None:
    """Do all of a question that needs no engine, with the settings in `folder`.

    Raises:
        CheckpointError: with the file, and the key in it, that is of no use.
        UsageError: the profile has no room for one frame and a short question.
    """
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    _check_vocabulary(tokenizer, config, folder)
    _check_end_tokens(config, folder)
    _check_preprocessing(config, folder)
    _check_prompt(_prompts(tokenizer, folder), config, profile)


def _check_vocabulary(tokenizer: Tokenizer, config: CheckpointConfig, folder: Path) -> None:
    """Every id that text can become must have an embedding."""
    vocabulary, rows = tokenizer.vocabulary, config.model.text.vocab_size
    # A clip stands in the place of its placeholder, whose embedding is never looked up.
    outside = {
        token: id_
        for token, id_ in vocabulary.items()
        if id_ >= rows and token not in VISUAL_PLACEHOLDERS
    }
    if outside:
        some = ", ".join(f"{token!r} is {id_}" for token, id_ in list(outside.items())[:3])
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE}: the ids of {len(outside)} token(s) are outside the "
            f"model's vocabulary of {rows} (text_config.vocab_size in {CONFIG}): {some}",
            hint="tokenizer and weights must be of one checkpoint",
        )


def _check_end_tokens(config: CheckpointConfig, folder: Path) -> None:
    file, rows = folder / GENERATION_CONFIG, config.model.text.vocab_size
    if not file.is_file() or read_json_object(file).get("eos_token_id") is None:
        file = folder / CONFIG
    ids = config.eos_token_ids
    if not ids or any(isinstance(token, bool) or not 0 <= token < rows for token in ids):
        raise CheckpointError(
            f"{file}: eos_token_id is {list(ids)}, and the model's vocabulary has the ids 0 to "
            f"{rows - 1}: an answer would never end",
            hint="give the id of the token that ends an answer",
        )


def _check_preprocessing(config: CheckpointConfig, folder: Path) -> None:
    """Frames of odd sizes must become what the tower takes."""
    size = config.model.vision.image_size
    settings, where = read_preprocess_config(folder, size), preprocess_source(folder)
    random = np.random.default_rng(0)
    for height, width in FRAME_SIZES:
        frame_HWC = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        try:
            with np.errstate(all="ignore"):
                pixels = preprocess([frame_HWC], settings)
        except (ValueError, ArithmeticError, MemoryError) as error:
            raise CheckpointError(f"{where}: preprocessing a frame fails: {error}") from error
        if pixels.shape != (1, 3, size, size):
            found = " x ".join(map(str, pixels.shape[2:]))
            raise CheckpointError(
                f"{where}: a frame of {height} x {width} pixels becomes {found}, and the vision "
                f"tower takes {size} x {size}",
                hint="see size, crop_size, do_resize and do_center_crop",
            )
        with np.errstate(all="ignore"):
            largest, spread = np.abs(pixels).max(), pixels.std((0, 2, 3)).min()
        if not (largest <= LARGEST_PIXEL and spread >= SMALLEST_SPREAD):
            raise CheckpointError(
                f"{where}: the pixels of a frame become numbers of up to {largest:.3g} that spread "
                f"by {spread:.3g}: no vision tower was trained on such",
                hint="see rescale_factor, image_mean, image_std, do_rescale and do_normalize",
            )


def _prompts(tokenizer: Tokenizer, folder: Path) -> PromptBuilder:
    """The prompts of the folder's template; what is wrong with that names its file."""
    found = find_template(folder)
    if found is None:
        return PromptBuilder(tokenizer, None)
    file, template = found
    try:
        return PromptBuilder(tokenizer, template)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}", hint=error.hint) from error


def _check_prompt(prompts: PromptBuilder, config: CheckpointConfig, profile: Profile) -> None:
    """A question about one frame, and an answer of one token, must have room."""
    prompt = prompts.build(QUESTION, [Clip(1, config.model.tokens_per_frame)])
    needed = prompt.length + 1
    if needed > profile.max_length:
        raise UsageError(
            f"the question {QUESTION!r} about one frame and an answer of one token take {needed} "
            f"tokens, and {profile.max_length} are allowed for",
            hint=f"build with --max-length {needed} or more",
        )
