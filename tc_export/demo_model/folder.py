# SPDX-License-Identifier: Apache-2.0
"""Writes a trained model as an ordinary checkpoint: a LLaVA folder in Hugging Face's format.

transformers' own classes save it, so that the names and files are those of any other checkpoint.
`temporal` and `pooling` in config.json are the two blocks that only we read.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from tc_export.checkpoint.names import Family, rename
from tc_export.config import ModelConfig
from tc_export.demo_model.batches import PIXEL_MEAN, PIXEL_STD
from tc_export.demo_model.tokenizer import VIDEO, token_id
from tc_export.errors import UsageError
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks.clips import STEPS

LONGEST_ANSWER = 16  # tokens


def write_checkpoint(
    model: TcLlava, tokenizer: PreTrainedTokenizerFast, folder: Path, *, card: dict[str, bytes]
) -> None:
    """Write the checkpoint and the files of its `card`; the folder appears as a whole.

    Raises:
        UsageError: the folder exists and holds something else than a checkpoint.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is not empty, and not a checkpoint", hint="give another folder")
    building = folder.with_name(folder.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    _as_transformers(model, tokenizer).save_pretrained(building)
    _add_to_config(building / "config.json", model.config)
    tokenizer.save_pretrained(building)
    _image_processor(model.config).save_pretrained(building)
    for name, content in card.items():
        (building / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def _as_transformers(
    model: TcLlava, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """The same weights in transformers' model, with the ids of the special tokens."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = model.config
    target = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_vision(config),
            text_config=_text(config, special),
            image_token_index=token_id(tokenizer, VIDEO),
            image_seq_length=config.vision.grid**2,
            projector_hidden_act=config.projector_act,
            multimodal_projector_bias=config.projector_bias,
            vision_feature_layer=config.vision.feature_layer,
            vision_feature_select_strategy="default",
            tie_word_embeddings=config.text.tie_word_embeddings,
        )
    )
    ours = model.state_dict()
    theirs = target.state_dict()
    renaming = rename(theirs, Family.LLAVA, config.vision.layers_used)
    with torch.no_grad():
        for name, spellings in renaming.sources.items():
            for spelling in spellings:
                theirs[spelling].copy_(ours[name])
    target.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=LONGEST_ANSWER, **special
    )
    return target


def _vision(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision.model_dump(exclude={"feature_layer", "keep_class_token"})
    return CLIPVisionConfig(**vision, projection_dim=config.vision.hidden_size).to_dict()


def _text(config: ModelConfig, special: dict[str, Any]) -> dict[str, Any]:
    text = config.text.model_dump(exclude={"rope"})
    rope = {"rope_type": config.text.rope.rope_type, "rope_theta": config.text.rope.theta}
    return LlamaConfig(**text, rope_parameters=rope, **special).to_dict()


def _add_to_config(file: Path, config: ModelConfig) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    document["video_token_index"] = document["image_token_index"]
    document["temporal"] = config.temporal.model_dump(mode="json")
    document["pooling"] = config.pooling.model_dump(mode="json")
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _image_processor(config: ModelConfig) -> CLIPImageProcessorPil:
    """CLIP's processing at this size; `num_frames` is how many frames the model was trained on."""
    side = config.vision.image_size
    further: dict[str, Any] = {"num_frames": STEPS}
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size=side,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
        **further,
    )
