# SPDX-License-Identifier: Apache-2.0
"""Configurations: frozen, checked once when they are read, and refused when a key is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tc_export.dtypes import DType
from tc_export.errors import UsageError


class Config(BaseModel):
    """Base of all configurations: immutable, and strict about names and values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Check `values` and build the configuration.

        Raises:
            UsageError: naming every wrong or unknown key at once, and the keys that exist.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise cls.refusal(error, where) from error

    @classmethod
    def refusal(cls, error: ValidationError, where: str) -> UsageError:
        """What is raised of values that are not valid: every wrong key, and the keys that exist."""
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or '(whole)'}: {problem['msg']}"
            for problem in error.errors()
        ]
        return UsageError(
            f"{where} is not a valid {cls.__name__}:\n" + "\n".join(lines),
            hint=f"known keys: {', '.join(cls.model_fields)}",
        )


class AttentionMask(StrEnum):
    """Which keys a visual token sees among visual tokens; every other pair is causal."""

    CAUSAL = "causal"
    FULL_VISUAL = "full_visual"
    FRAME_BLOCK = "frame_block"
    FRAME_BLOCK_CAUSAL = "frame_block_causal"

    @property
    def is_prefix(self) -> bool:
        """True where each query sees a prefix of the keys: one integer a row says it all."""
        return self is not AttentionMask.FRAME_BLOCK

    @property
    def allows_frame_chunks(self) -> bool:
        """True where prefill may be cut between frames without changing the result."""
        return self is not AttentionMask.FULL_VISUAL


class AfterClip(StrEnum):
    """Temporal position of the first token after a clip that starts at v_s and has F frames."""

    RESTART = "restart"  # v_s + F
    SHARE = "share"  # v_s + F - 1, the last frame's


class TemporalConfig(Config):
    """The method's own settings (none of them is a weight)."""

    gamma: float = Field(default=1.0, ge=0.0)
    mask: AttentionMask = AttentionMask.FRAME_BLOCK_CAUSAL
    after_clip: AfterClip = AfterClip.RESTART

    @property
    def is_stock(self) -> bool:
        """True where this is LLaVA as it was before the method."""
        return self.gamma == 0 and self.mask is AttentionMask.CAUSAL


class KvFormat(StrEnum):
    """What the key/value cache is stored in."""

    OWN = "16"  # the decoder's own format
    INT8 = "int8"  # with a scale for each row of each key/value head

    @property
    def dtype(self) -> DType | None:
        """The format of the stored numbers; None for the decoder's own."""
        return None if self is KvFormat.OWN else DType(self)


class CacheConfig(Config):
    """The key/value cache."""

    kv: KvFormat = KvFormat.OWN

    def check(self, mask: AttentionMask) -> None:
        """See that there is such a cache with the mask.

        Raises:
            ValueError: saying why there is not.
        """
        if self.kv is not KvFormat.OWN and not mask.is_prefix:
            raise ValueError(f"a cache in {self.kv} has no mask {mask}, which is no prefix of it")


class VisionFeatures(StrEnum):
    """Which of the vision tower's tokens go on: Hugging Face's vision_feature_select_strategy."""

    DEFAULT = "default"  # the patches
    FULL = "full"  # the class token, and the patches


class VisionConfig(Config):
    """A CLIP-type vision tower. Sizes in pixels or channels."""

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    feature_layer: int = -2
    keep_class_token: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is not a multiple of num_attention_heads")
        if self.image_size % self.patch_size:
            raise ValueError("image_size is not a multiple of patch_size")
        if not -self.num_hidden_layers - 1 <= self.feature_layer <= self.num_hidden_layers:
            raise ValueError(f"feature_layer {self.feature_layer} is outside the tower")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def features(self) -> VisionFeatures:
        """Which tokens go on, in the words of a checkpoint."""
        return VisionFeatures.FULL if self.keep_class_token else VisionFeatures.DEFAULT

    @property
    def layers_used(self) -> int:
        """Layers that run: those after the feature layer are never needed."""
        if self.feature_layer >= 0:
            return self.feature_layer
        return self.num_hidden_layers + 1 + self.feature_layer


class PoolingMode(StrEnum):
    """What becomes of the patches that are pooled into one token."""

    AVERAGE = "average"
    MAX = "max"


class PoolingConfig(Config):
    """Spatial pooling of a frame's patch grid. `stride` 1 keeps every patch."""

    stride: int = Field(default=2, gt=0)
    mode: PoolingMode = PoolingMode.AVERAGE
    before_projector: bool = False

    def check(self, vision: VisionConfig) -> None:
        """See that the tower's features can be pooled so.

        Raises:
            ValueError: saying why they cannot.
        """
        if vision.grid < self.stride:
            raise ValueError(f"pooling stride {self.stride} exceeds the {vision.grid} patches")
        if vision.keep_class_token and self.stride > 1:
            raise ValueError("a kept class token cannot be pooled: use pooling stride 1")


class VisionSettings(Config):
    """What can be chosen of a vision tower."""

    features: VisionFeatures = VisionFeatures.DEFAULT


class ModelSettings(Config):
    """What a checkpoint may leave to its user. Only fields that are set say something."""

    temporal: TemporalConfig = TemporalConfig()
    pooling: PoolingConfig = PoolingConfig()
    vision: VisionSettings = VisionSettings()
    cache: CacheConfig = CacheConfig()


class RopeConfig(Config):
    """Rotary embedding of the language model: base and scaling.

    The scaling fields have Hugging Face's names and meaning; only those of `rope_type` are used.
    """

    theta: float = Field(default=10000.0, gt=0)
    rope_type: str = Field(default="default", pattern="^(default|linear|llama3|yarn)$")
    factor: float = Field(default=1.0, ge=1.0)
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class TextConfig(Config):
    """A LLaMA-shaped decoder."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope: RopeConfig = RopeConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise ValueError("head_dim is odd: rotation needs pairs of channels")
        return self


class ModelConfig(Config):
    """A whole TC-LLaVA."""

    vision: VisionConfig
    projector_act: str = "gelu"
    projector_bias: bool = True
    pooling: PoolingConfig = PoolingConfig()
    text: TextConfig
    temporal: TemporalConfig = TemporalConfig()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.pooling.check(self.vision)
        self.cache.check(self.temporal.mask)
        return self

    @property
    def settings(self) -> ModelSettings:
        """Everything that a user may choose, as it is in this model."""
        return ModelSettings(
            temporal=TemporalConfig(**self.temporal.model_dump()),
            pooling=PoolingConfig(**self.pooling.model_dump()),
            vision=VisionSettings(features=self.vision.features),
            cache=CacheConfig(**self.cache.model_dump()),
        )

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame after pooling (m)."""
        side = self.vision.grid // self.pooling.stride
        return side * side + int(self.vision.keep_class_token)
