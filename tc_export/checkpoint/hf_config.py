# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's `config.json` of a LLaVA-family checkpoint -> `CheckpointConfig`.

What the reference model does not compute is refused by name, all at once: nothing in a config is
passed over that would change the result, and code in a checkpoint's folder is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tc_export.checkpoint.hf_schema import TEXT_SCHEMAS, HfLlama, HfLlava
from tc_export.checkpoint.names import Family
from tc_export.checkpoint.shards import read_json_object
from tc_export.config import Config, ModelConfig, PoolingConfig, TemporalConfig
from tc_export.errors import CheckpointError, UsageError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
IMAGE_TOKEN = {Family.LLAVA: 32000, Family.LLAVA_NEXT: 32000, Family.LLAVA_NEXT_VIDEO: 32001}
VIDEO_TOKEN = 32000

C = TypeVar("C", bound=Config)


class Origin(StrEnum):
    """Where a setting came from."""

    CHECKPOINT = "checkpoint"
    FLAG = "flag"
    DEFAULT = "default"


@dataclass(frozen=True)
class CheckpointConfig:
    """All that a checkpoint's config files say and that we use."""

    family: Family
    model: ModelConfig
    image_token_id: int
    video_token_id: int | None
    """The placeholder of a video's tokens; None where the family has only that of images."""
    eos_token_ids: tuple[int, ...]
    origins: Mapping[str, Origin]
    """Where each `temporal.*` and `pooling.*` setting came from."""
    document: Mapping[str, Any]
    """`config.json` as it was read."""


def read_config(
    folder: Path, temporal_overrides: Mapping[str, Any] | None = None
) -> CheckpointConfig:
    """Read `config.json`, and `generation_config.json` where there is one.

    `temporal_overrides` are fields of `TemporalConfig` that the user gave as flags: they count
    where the checkpoint says nothing.

    Raises:
        CheckpointError: no config, not a LLaVA, or a setting that is not supported.
        UsageError: a flag is wrong, or contradicts the checkpoint.
    """
    file = folder / CONFIG
    if not file.exists():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG}",
            hint="give a folder in Hugging Face's format, with config.json and safetensors",
        )
    document = read_json_object(file)
    family = _family(document, file)
    source = _parse(document, file)
    problems = [f"  {problem}" for problem in _unsupported(source)]
    if problems:
        raise CheckpointError(f"{file} asks for what is not supported:\n" + "\n".join(problems))
    temporal, temporal_origins = _temporal(source, temporal_overrides or {}, file)
    pooling, pooling_origins = _pooling(source, family)
    values = {
        "vision": _vision(source),
        "projector_act": source.projector_hidden_act,
        "projector_bias": source.multimodal_projector_bias,
        "pooling": pooling,
        "text": _text(source),
        "temporal": temporal,
    }
    return CheckpointConfig(
        family=family,
        model=_checked(ModelConfig, values, where=str(file)),
        image_token_id=_or_default(source.image_token_id, IMAGE_TOKEN[family]),
        video_token_id=_or_default(source.video_token_id, VIDEO_TOKEN)
        if family is Family.LLAVA_NEXT_VIDEO
        else None,
        eos_token_ids=_eos_token_ids(folder, source.text_config),
        origins=temporal_origins | pooling_origins,
        document=document,
    )


def _family(document: Mapping[str, Any], file: Path) -> Family:
    if "mm_vision_tower" in document:
        raise CheckpointError(
            f"{file} is in LLaVA's original format (it has mm_vision_tower)",
            hint="use the checkpoint in Hugging Face's format: its name ends in -hf on the hub",
        )
    model_type = document.get("model_type")
    if model_type not in tuple(Family):
        raise CheckpointError(
            f"{file} has model_type {model_type!r}, expected one of {', '.join(Family)}",
            hint="only LLaVA-family checkpoints can be exported",
        )
    # The first LLaVA-NeXT-Video checkpoints on the hub have model_type llava_next.
    if "LlavaNextVideoForConditionalGeneration" in str(document.get("architectures")):
        return Family.LLAVA_NEXT_VIDEO
    return Family(model_type)


def _parse(document: Mapping[str, Any], file: Path) -> HfLlava:
    try:
        return HfLlava.model_validate(dict(document))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}, not {problem['input']!r}"
            for problem in error.errors()
        ]
        raise CheckpointError(
            f"{file} has values of the wrong kind:\n" + "\n".join(lines)
        ) from error


def _unsupported(source: HfLlava) -> Iterator[str]:
    """Name every setting that the reference model does not compute."""
    vision, text = source.vision_config, source.text_config
    for where, config in (("", source), ("vision_config.", vision), ("text_config.", text)):
        if config.quantization_config is not None:
            yield f"{where}quantization_config: give the checkpoint before it was quantised"
        if config.auto_map is not None:
            yield f"{where}auto_map: code in the folder is never run"
    rope = text.rope()
    for name, found, supported in (
        ("vision_config.model_type", vision.model_type, ("clip_vision_model",)),
        ("vision_config.num_channels", vision.num_channels, (3,)),
        ("vision_config.hidden_act", vision.hidden_act, ACTIVATIONS),
        ("projector_hidden_act", source.projector_hidden_act, ACTIVATIONS),
        (
            "vision_feature_select_strategy",
            source.vision_feature_select_strategy,
            ("default", "full"),
        ),
        ("spatial_pool_mode", source.spatial_pool_mode, ("average", "max")),
        ("text_config.model_type", text.model_type, tuple(TEXT_SCHEMAS)),
        ("text_config.hidden_act", text.hidden_act, ("silu",)),
        ("text_config rope_type", rope["rope_type"], ROPE_TYPES),
        ("text_config partial_rotary_factor", rope["partial_rotary_factor"], (None, 1.0)),
    ):
        if found not in supported:
            yield f"{name}: {found!r} (supported: {', '.join(map(str, supported))})"
    if isinstance(source.vision_feature_layer, list):
        yield f"vision_feature_layer: {source.vision_feature_layer} (supported: one layer)"
    if text.sliding_window is not None and text.sliding_window < text.max_position_embeddings:
        yield f"text_config.sliding_window: {text.sliding_window} (supported: null)"


def _vision(source: HfLlava) -> dict[str, Any]:
    return {
        **source.vision_config.model_dump(
            exclude={"model_type", "num_channels", "quantization_config", "auto_map"}
        ),
        "feature_layer": source.vision_feature_layer,
        "keep_class_token": source.vision_feature_select_strategy == "full",
    }


def _text(source: HfLlava) -> dict[str, Any]:
    text = source.text_config
    rope = text.rope()
    del rope["partial_rotary_factor"]
    heads = text.num_attention_heads
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _or_default(text.num_key_value_heads, heads),
        "head_dim": _or_default(text.head_dim, text.hidden_size // heads),
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "attention_bias": text.attention_bias,
        "mlp_bias": text.mlp_bias,
        "tie_word_embeddings": source.tie_word_embeddings or text.tie_word_embeddings,
        "rope": {"theta": rope.pop("rope_theta"), **rope},
    }


def _temporal(
    source: HfLlava, overrides: Mapping[str, Any], file: Path
) -> tuple[TemporalConfig, dict[str, Origin]]:
    """Each setting from the checkpoint, else from a flag, else the default."""
    stated = _checked(TemporalConfig, source.temporal, where=f"`temporal` in {file}")
    flags = TemporalConfig.read(overrides, where="the command line")
    contradictions = [
        f"  {name}: {getattr(flags, name)} asked for, {getattr(stated, name)} in the checkpoint"
        for name in sorted(flags.model_fields_set & stated.model_fields_set)
        if getattr(flags, name) != getattr(stated, name)
    ]
    if contradictions:
        raise UsageError(
            f"temporal settings contradict {file}:\n" + "\n".join(contradictions),
            hint="leave the flags out, or change `temporal` in a copy of the checkpoint's config",
        )
    # What both state is equal by now, so the order does not matter.
    merged = flags.model_dump(exclude_unset=True) | stated.model_dump(exclude_unset=True)
    origins = {
        f"temporal.{name}": Origin.CHECKPOINT
        if name in stated.model_fields_set
        else Origin.FLAG
        if name in flags.model_fields_set
        else Origin.DEFAULT
        for name in TemporalConfig.model_fields
    }
    return TemporalConfig(**merged), origins


def _pooling(source: HfLlava, family: Family) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The key `pooling`, else LLaVA-NeXT-Video's own keys, else the defaults."""
    stated: dict[str, Any] = {}
    if family is Family.LLAVA_NEXT_VIDEO:
        stated = {
            "stride": source.spatial_pool_stride,
            "mode": source.spatial_pool_mode,
            "before_projector": True,
        }
    stated |= source.pooling
    origins = {
        f"pooling.{name}": Origin.CHECKPOINT if name in stated else Origin.DEFAULT
        for name in PoolingConfig.model_fields
    }
    return stated, origins


def _eos_token_ids(folder: Path, text: HfLlama) -> tuple[int, ...]:
    """The tokens that end an answer: the generation config's word counts over the model's."""
    file = folder / GENERATION_CONFIG
    stated = read_json_object(file).get("eos_token_id") if file.exists() else None
    found = _or_default(stated, text.eos_token_id)
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(token, int) for token in ids):
        raise CheckpointError(
            f"{folder}: eos_token_id is {found!r}, expected the number of a token, or several"
        )
    return tuple(ids)


def _checked(kind: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Build a configuration from the checkpoint's values: what is wrong is the checkpoint's."""
    try:
        return kind.read(values, where=where)
    except UsageError as error:
        raise CheckpointError(str(error), hint=error.hint) from error


def _or_default(value: Any, default: Any) -> Any:
    """`value`, or `default` where the file says null or nothing."""
    return default if value is None else value
