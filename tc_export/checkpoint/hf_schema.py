# SPDX-License-Identifier: Apache-2.0
"""The part of Hugging Face's `config.json` that we read, with the library's names and defaults.

Files from transformers 4 hold only what differs from the library's defaults, so those defaults
stand here (a test compares them with the library's). Keys that change no result are ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator


class HfConfig(BaseModel):
    """Base of the schemas: strict about types, and silent about keys that it does not know."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )

    quantization_config: Any = None
    auto_map: Any = None


class HfVision(HfConfig):
    """CLIPVisionConfig."""

    model_type: str = "clip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


CLIP_LARGE = HfVision(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)


class HfLlama(HfConfig):
    """LlamaConfig. `rope_theta` and `rope_scaling` are transformers 4, `rope_parameters` is 5."""

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = Field(default=32, gt=0)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None

    def rope(self) -> dict[str, Any]:
        """Rope settings in today's spelling, whichever the file has."""
        stated = dict(self.rope_scaling or self.rope_parameters or {})
        legacy_type = stated.pop("type", "default")
        defaults = {
            "rope_type": legacy_type,
            "rope_theta": self.rope_theta,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        return defaults | stated


class HfMistral(HfLlama):
    """MistralConfig."""

    model_type: str = "mistral"
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096


TEXT_SCHEMAS: dict[str, type[HfLlama]] = {"llama": HfLlama, "mistral": HfMistral}


class HfLlava(HfConfig):
    """LlavaConfig, LlavaNextConfig and LlavaNextVideoConfig, and our own three keys."""

    model_type: str | None = None
    architectures: list[str] | None = None
    vision_config: HfVision = CLIP_LARGE
    text_config: HfLlama = HfLlama()
    image_token_id: int | None = Field(
        default=None, ge=0, validation_alias=AliasChoices("image_token_index", "image_token_id")
    )
    video_token_id: int | None = Field(
        default=None, ge=0, validation_alias=AliasChoices("video_token_index", "video_token_id")
    )
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = False
    spatial_pool_mode: str = "average"
    spatial_pool_stride: int = 2
    temporal: dict[str, Any] = {}
    pooling: dict[str, Any] = {}
    cache: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_null_parts(cls, values: Any) -> Any:
        """A part that is null is a part that is absent."""
        parts = ("vision_config", "text_config", "temporal", "pooling", "cache")
        return {k: v for k, v in values.items() if k not in parts or v is not None}

    @field_validator("text_config", mode="before")
    @classmethod
    def _by_model_type(cls, values: Any) -> Any:
        """A text model of an unknown type is read as a LLaMA, to be refused by name afterwards."""
        if not isinstance(values, dict):
            return values
        return TEXT_SCHEMAS.get(str(values.get("model_type", "llama")), HfLlama)(**values)
