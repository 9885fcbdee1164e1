# SPDX-License-Identifier: Apache-2.0
"""gamma = 0 with the causal mask is stock LLaVA: equal to transformers' own models, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from tc_export.config import ModelConfig, PoolingConfig, VisionConfig
from tc_export.errors import UsageError
from tc_export.model.positions import Clip, Text, lay_out
from tc_export.model.tc_llava import TcLlava
from tests.model.sequences import temporal_config
from tests.model.small_models import VISION, randomise, run, text_config

VISUAL_TOKEN = 42
FRAME_TOKENS = 16  # of the 4 x 4 grid, without pooling


def transformers_llava(
    attention: str, vision: VisionConfig, video: bool = False, **changes: Any
) -> LlavaForConditionalGeneration | LlavaNextVideoForConditionalGeneration:
    text = text_config().model_dump(exclude={"rope"})
    parts: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(
            **vision.model_dump(exclude={"feature_layer", "keep_class_token"}),
            attn_implementation=attention,
        ),
        "text_config": LlamaConfig(**text, attn_implementation=attention),
        "image_token_index": VISUAL_TOKEN - int(video),
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "full" if vision.keep_class_token else "default",
        "attn_implementation": attention,
    }
    model: Any
    if video:
        model = LlavaNextVideoForConditionalGeneration(
            LlavaNextVideoConfig(**parts, video_token_index=VISUAL_TOKEN, **changes)
        )
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**parts, **changes))
    randomise(model)
    model.eval().requires_grad_(False)
    return model


RENAMED = (
    ("model.vision_tower.encoder.layers.", "vision.vision_tower.layers."),
    ("model.vision_tower.pre_layrnorm.", "vision.vision_tower.pre_layernorm."),
    ("model.vision_tower.", "vision.vision_tower."),
    ("model.multi_modal_projector.", "vision.multi_modal_projector."),
    ("model.language_model.embed_tokens.", "embed_tokens."),
    ("model.language_model.", "decoder."),
    ("lm_head.", "decoder.lm_head."),
)


def ours_with_weights_of(theirs: nn.Module, config: ModelConfig) -> TcLlava:
    ours = TcLlava(config).eval().requires_grad_(False)
    weights = {}
    for name, tensor in theirs.state_dict().items():
        old, new = next(pair for pair in (*RENAMED, ("", "")) if name.startswith(pair[0]))
        weights[new + name.removeprefix(old)] = tensor
    unused = ours.load_state_dict(weights, strict=False)
    assert not unused.missing_keys
    layers = tuple(f"vision.vision_tower.layers.{n}." for n in range(config.vision.layers_used, 9))
    never_used = ("vision.vision_tower.post_layernorm.", "model.image_newline", *layers)
    assert all(name.startswith(never_used) for name in unused.unexpected_keys)
    return ours


def stock_config(vision: VisionConfig = VISION, **changes: Any) -> ModelConfig:
    return ModelConfig(
        vision=vision,
        text=text_config(),
        **{
            "temporal": temporal_config("causal", gamma=0.0),
            "pooling": PoolingConfig(stride=1),
            **changes,
        },
    )


def pixels(frames: int) -> Tensor:
    return torch.randn((frames, 3, 8, 8), generator=torch.Generator().manual_seed(3))


def prompt(frame_tokens: int = FRAME_TOKENS) -> Tensor:
    """Text, an image, text, an image, text."""
    visual = [VISUAL_TOKEN] * frame_tokens
    return torch.tensor([[1, 5, 6, *visual, 7, *visual, 8, 9, 10]])


def our_logits(model: TcLlava, token_ids: Tensor, pixel_values: Tensor) -> Tensor:
    m = model.config.tokens_per_frame
    segments = [Text(3), Clip(1, m), Text(1), Clip(1, m), Text(3)]
    layout, _ = lay_out(segments, model.config.temporal)
    embeds = model.embed(token_ids, pixel_values, VISUAL_TOKEN)
    return run(model, embeds, layout.batched())[0]


def test_logits_equal_transformers_llava() -> None:
    theirs = transformers_llava("sdpa", VISION)
    ours = ours_with_weights_of(theirs, stock_config())

    expected = theirs(input_ids=prompt(), pixel_values=pixels(2)).logits
    found = our_logits(ours, prompt(), pixels(2))

    assert expected.std() > 0.1
    assert torch.equal(found, expected), (found - expected).abs().max()


def test_logits_are_near_those_of_plain_attention() -> None:
    """Its softmax is another algorithm, so nothing is equal to the bit: 32 roundings of room."""
    theirs = transformers_llava("eager", VISION)
    ours = ours_with_weights_of(theirs, stock_config())
    expected = theirs(input_ids=prompt(), pixel_values=pixels(2)).logits
    found = our_logits(ours, prompt(), pixels(2))
    room = 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=room)


@pytest.mark.parametrize("change", [{"gamma": 1e-3}, {"mask": "frame_block_causal"}], ids=str)
def test_the_method_is_not_stock_llava(change: dict[str, Any]) -> None:
    """Guards against an equality that would hold for anything."""
    theirs = transformers_llava("sdpa", VISION)
    temporal = temporal_config(**{"gamma": 0.0, "mask": "causal", **change})
    ours = ours_with_weights_of(theirs, stock_config(temporal=temporal))
    expected = theirs(input_ids=prompt(), pixel_values=pixels(2)).logits
    assert (our_logits(ours, prompt(), pixels(2)) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("feature_layer", [-1, -2, -4, 1, 2, 3])
@pytest.mark.parametrize("keep_class_token", [False, True])
def test_visual_tokens_equal_transformers_llava(feature_layer: int, keep_class_token: bool) -> None:
    vision = VISION.model_copy(
        update={"feature_layer": feature_layer, "keep_class_token": keep_class_token}
    )
    theirs = transformers_llava("sdpa", vision)
    ours = ours_with_weights_of(theirs, stock_config(vision))
    expected = torch.stack(theirs.get_image_features(pixels(3)).pooler_output)
    assert torch.equal(ours.vision(pixels(3)), expected)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
def test_activations_equal_transformers(activation: str) -> None:
    vision = VISION.model_copy(update={"hidden_act": activation})
    theirs = transformers_llava("sdpa", vision, projector_hidden_act=activation)
    ours = ours_with_weights_of(theirs, stock_config(vision, projector_act=activation))
    expected = torch.stack(theirs.get_image_features(pixels(2)).pooler_output)
    torch.testing.assert_close(ours.vision(pixels(2)), expected, rtol=1e-6, atol=1e-6)


def test_an_unknown_activation_is_refused() -> None:
    model = TcLlava(stock_config(projector_act="relu6"))
    with pytest.raises(UsageError, match="relu6") as error:
        model.vision(pixels(1))
    assert "quick_gelu" in str(error.value.hint)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_video_tokens_equal_transformers_llava_next_video(mode: str) -> None:
    """LLaVA-NeXT-Video pools before it projects."""
    theirs = transformers_llava("sdpa", VISION, video=True, spatial_pool_mode=mode)
    pooling = PoolingConfig(stride=2, mode=mode, before_projector=True)
    ours = ours_with_weights_of(theirs, stock_config(pooling=pooling))
    expected = theirs.get_video_features(
        pixels(3)[None], vision_feature_layer=-2, vision_feature_select_strategy="default"
    ).pooler_output
    assert torch.equal(ours.vision(pixels(3)).flatten(0, 1), expected[0])


@pytest.mark.parametrize("side", [4, 5])
def test_pooling_is_the_mean_of_squares_of_patches(side: int) -> None:
    """Project, then pool; a fifth row and column fill no square, and are dropped."""
    vision = VISION.model_copy(update={"image_size": 2 * side})
    config = stock_config(vision, pooling=PoolingConfig(stride=2))
    model = TcLlava(config).double().eval().requires_grad_(False)
    randomise(model)
    frames = torch.randn((2, 3, 2 * side, 2 * side), dtype=torch.float64)
    projected = model.vision.multi_modal_projector(model.vision.vision_tower(frames))

    found = model.vision(frames)

    assert found.shape == (2, config.tokens_per_frame, 24) == (2, 4, 24)
    for frame in range(2):
        for row in range(2):
            for column in range(2):
                patches = [
                    projected[frame, (2 * row + i) * side + 2 * column + j]
                    for i in range(2)
                    for j in range(2)
                ]
                expected = sum(patches) / 4
                torch.testing.assert_close(found[frame, 2 * row + column], expected)


@pytest.mark.parametrize(("frames", "places"), [(1, 2), (2, 1), (0, 1), (2, 0)])
def test_frames_and_places_must_agree(frames: int, places: int) -> None:
    model = TcLlava(stock_config())
    token_ids = torch.tensor([[1, *[VISUAL_TOKEN] * (places * FRAME_TOKENS), 2]])
    with pytest.raises(UsageError, match=f"{places * FRAME_TOKENS} places .* {frames} frames"):
        model.embed(token_ids, pixels(frames), VISUAL_TOKEN)


def test_a_visual_token_outside_the_vocabulary() -> None:
    """Its id is the tokenizer's; the embedding table need not reach that far."""
    model = TcLlava(stock_config()).eval().requires_grad_(False)
    randomise(model)
    inside = model.embed(prompt(), pixels(2), VISUAL_TOKEN)
    outside = prompt().masked_fill(prompt() == VISUAL_TOKEN, 999)
    assert torch.equal(model.embed(outside, pixels(2), 999), inside)


def test_a_batch_takes_its_frames_in_order() -> None:
    model = TcLlava(stock_config()).eval().requires_grad_(False)
    randomise(model)
    row = [VISUAL_TOKEN] * FRAME_TOKENS
    token_ids = torch.tensor([[1, *row, 2, 3], [4, 5, 6, *row]])
    frames = pixels(2)
    embeds = model.embed(token_ids, frames, VISUAL_TOKEN)
    assert torch.equal(embeds[0, 1 : 1 + FRAME_TOKENS], model.vision(frames)[0])
    assert torch.equal(embeds[1, 3:], model.vision(frames)[1])
    assert torch.equal(embeds[1, :3], model.embed_tokens(token_ids[1, :3]))
