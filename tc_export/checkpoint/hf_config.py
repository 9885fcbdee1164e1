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

from tc_export.checkpoint.foreign import QUANT_METHODS, Packing, find_packing
from tc_export.checkpoint.hf_schema import TEXT_SCHEMAS, HfLlama, HfLlava
from tc_export.checkpoint.names import Family
from tc_export.checkpoint.shards import read_json_object
from tc_export.config import (
    CacheConfig,
    Config,
    ModelConfig,
    ModelSettings,
    PoolingConfig,
    TemporalConfig,
    VisionFeatures,
    VisionSettings,
)
from tc_export.errors import CheckpointError, UsageError
from tc_export.recipes import Recipe, is_ours, recipe_of

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
    USER = "user"
    STOCK = "stock"  # neither chose it: it is how LLaVA is without the method
    DEFAULT = "default"  # neither chose it: it is the method's


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
    """Where each setting came from, by its place in `ModelSettings`: `temporal.gamma`."""
    document: Mapping[str, Any]
    """`config.json` as it was read."""
    packing: Packing | None = None
    """How another library quantised the weights; None where none did."""

    @property
    def recipe(self) -> Recipe | None:
        """What the weights are quantised by, as the configuration says; None where they are not.

        Raises:
            CheckpointError: they are in a form that cannot be kept.
            UsageError: what we wrote of it was changed.
        """
        return self.packing.recipe(self.model) if self.packing else recipe_of(self.document)

    @property
    def image_note(self) -> str | None:
        """A sentence about what the family does with an image, and is not done here."""
        if self.family is Family.LLAVA:
            return None
        return (
            "An image is seen whole, as one frame: LLaVA-NeXT's tiles (anyres) are not used, so "
            "small text and far things are seen less sharp than there."
        )


def read_config(folder: Path, asked: ModelSettings | None = None) -> CheckpointConfig:
    """Read `config.json`, and `generation_config.json` where there is one.

    What the user asked for counts where the checkpoint says nothing.

    Raises:
        CheckpointError: no config, not a LLaVA, or a setting that is not supported.
        UsageError: what was asked for contradicts the checkpoint, or cannot be of this model.
    """
    file = folder / CONFIG
    if not file.exists():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG}",
            hint="give a folder in Hugging Face's format, with config.json and safetensors",
        )
    document = read_json_object(file)
    family = read_family(document, file)
    source = _parse(document, file)
    problems = [f"  {problem}" for problem in _unsupported(source)]
    if problems:
        raise CheckpointError(f"{file} asks for what is not supported:\n" + "\n".join(problems))
    settings, origins = _settle(_stated(source, family, file), asked or ModelSettings(), file)
    _check_cache(settings, origins, file)
    values = {
        "vision": _vision(source, settings.vision.features),
        "projector_act": source.projector_hidden_act,
        "projector_bias": source.multimodal_projector_bias,
        "pooling": PoolingConfig(stride=1),
        "text": _text(source),
        "temporal": settings.temporal,
        "cache": settings.cache,
    }
    unpooled = _checked(ModelConfig, values, where=str(file))
    return CheckpointConfig(
        family=family,
        model=_pooled(unpooled, settings.pooling, origins, file),
        image_token_id=_or_default(source.image_token_id, IMAGE_TOKEN[family]),
        video_token_id=_or_default(source.video_token_id, VIDEO_TOKEN)
        if family is Family.LLAVA_NEXT_VIDEO
        else None,
        eos_token_ids=_eos_token_ids(folder, source.text_config),
        origins=origins,
        document=document,
        packing=_packing(source, folder),
    )


def read_family(document: Mapping[str, Any], file: Path) -> Family:
    """Which family a `config.json` is of.

    Raises:
        CheckpointError: of none that is supported.
    """
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
        is_whole = config is source
        quantization = config.quantization_config
        if quantization is not None and not is_whole:
            yield f"{where}quantization_config: expected outside of {where.rstrip('.')}"
        elif quantization is not None and not is_ours(quantization):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            if method not in QUANT_METHODS:
                known = ", ".join(QUANT_METHODS)
                yield f"quantization_config.quant_method: {method!r} (supported: {known})"
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
            tuple(VisionFeatures),
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


def _packing(source: HfLlava, folder: Path) -> Packing | None:
    if is_ours(source.quantization_config):
        return None
    return find_packing(source.quantization_config, folder)


def _vision(source: HfLlava, features: VisionFeatures) -> dict[str, Any]:
    return {
        **source.vision_config.model_dump(
            exclude={"model_type", "num_channels", "quantization_config", "auto_map"}
        ),
        "feature_layer": source.vision_feature_layer,
        "keep_class_token": features is VisionFeatures.FULL,
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


def _stated(source: HfLlava, family: Family, file: Path) -> ModelSettings:
    """What the checkpoint says of the settings that it could leave to the user."""
    pooling: dict[str, Any] = {}
    if family is Family.LLAVA_NEXT_VIDEO:  # these keys are its own, and count where left out
        pooling = {
            "stride": source.spatial_pool_stride,
            "mode": source.spatial_pool_mode,
            "before_projector": True,
        }
    vision = {}
    if "vision_feature_select_strategy" in source.model_fields_set:
        vision = {"features": VisionFeatures(source.vision_feature_select_strategy)}
    return ModelSettings(
        temporal=_checked(TemporalConfig, source.temporal, where=f"`temporal` in {file}"),
        pooling=_checked(PoolingConfig, pooling | source.pooling, where=f"`pooling` in {file}"),
        vision=VisionSettings(**vision),
        cache=_checked(CacheConfig, source.cache, where=f"`cache` in {file}"),
    )


def _settle(
    stated: ModelSettings, asked: ModelSettings, file: Path
) -> tuple[ModelSettings, dict[str, Origin]]:
    """Each setting from the checkpoint, else from the user, else stock LLaVA's or the default."""
    settled: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    contradictions: list[str] = []
    for part in ModelSettings.model_fields:
        by_checkpoint = getattr(stated, part).model_dump(exclude_unset=True)
        by_user = getattr(asked, part).model_dump(exclude_unset=True)
        contradictions += [
            f"  {part}.{name}: {by_user[name]} asked for, {by_checkpoint[name]} in the checkpoint"
            for name in sorted(by_user.keys() & by_checkpoint.keys())
            if by_user[name] != by_checkpoint[name]
        ]
        # What both state is equal where nothing contradicts, so the order does not matter.
        settled[part] = by_user | by_checkpoint
        for name in type(getattr(stated, part)).model_fields:
            origins[f"{part}.{name}"] = (
                Origin.CHECKPOINT
                if name in by_checkpoint
                else Origin.USER
                if name in by_user
                else Origin.DEFAULT
            )
    if contradictions:
        raise UsageError(
            f"what is asked for contradicts {file}:\n" + "\n".join(contradictions),
            hint="leave it out, or change it in a copy of the checkpoint's config",
        )
    # Nobody has gamma 0 and the causal mask by default: whoever chose them wants stock LLaVA.
    if not settled["pooling"] and TemporalConfig(**settled["temporal"]).is_stock:
        settled["pooling"] = {"stride": 1}
        origins["pooling.stride"] = Origin.STOCK
    return ModelSettings(**settled), origins


def _pooled(
    model: ModelConfig, pooling: PoolingConfig, origins: Mapping[str, Origin], file: Path
) -> ModelConfig:
    """The model with its pooling: where that cannot be, the fault may be the user's."""
    try:
        pooling.check(model.vision)
    except ValueError as error:
        asked = Origin.USER in (origins["pooling.stride"], origins["vision.features"])
        raise (UsageError if asked else CheckpointError)(
            f"{file}: {error}",
            hint=None
            if origins["pooling.stride"] is Origin.CHECKPOINT
            else "--pooling-stride 1 leaves pooling out",
        ) from error
    return model.model_copy(update={"pooling": pooling})


def _check_cache(settings: ModelSettings, origins: Mapping[str, Origin], file: Path) -> None:
    """See that there is such a cache with the mask: where not, the fault may be the user's."""
    try:
        settings.cache.check(settings.temporal.mask)
    except ValueError as error:
        asked = Origin.USER in (origins["cache.kv"], origins["temporal.mask"])
        raise (UsageError if asked else CheckpointError)(
            f"{file}: {error}", hint="--kv 16 is a cache in the decoder's own format"
        ) from error


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
