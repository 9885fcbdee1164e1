# SPDX-License-Identifier: Apache-2.0
"""The name and shape of every weight, from the configuration alone: `TcLlava.state_dict()`'s.

A checkpoint is opened, refused and hashed by this table, which takes no PyTorch. A test compares it
with the model itself.

Letters: E channels of the vision tower, W its wide layer; T channels of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator

from tc_export.config import ModelConfig, TextConfig, VisionConfig

Shape = tuple[int, ...]
Weights = Iterator[tuple[str, Shape]]


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every weight by its name, in the model's order."""
    text = config.text
    T, vocabulary = text.hidden_size, text.vocab_size
    return {
        **dict(_under("vision.vision_tower", _tower(config.vision))),
        **dict(_under("vision.multi_modal_projector", _projector(config))),
        "embed_tokens.weight": (vocabulary, T),
        **dict(_under("decoder.layers", _layers(text.num_hidden_layers, _decoder_layer(text)))),
        "decoder.norm.weight": (T,),
        "decoder.lm_head.weight": (vocabulary, T),
    }


def _tower(vision: VisionConfig) -> Weights:
    E, patch = vision.hidden_size, vision.patch_size
    yield "embeddings.class_embedding", (E,)
    yield "embeddings.patch_embedding.weight", (E, 3, patch, patch)
    yield "embeddings.position_embedding.weight", (vision.grid**2 + 1, E)
    yield from _linear("pre_layernorm", (E,))
    yield from _under("layers", _layers(vision.layers_used, _tower_layer(vision)))


def _tower_layer(vision: VisionConfig) -> Weights:
    E, W = vision.hidden_size, vision.intermediate_size
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _linear(f"self_attn.{name}", (E, E))
    yield from _linear("layer_norm1", (E,))
    yield from _linear("mlp.fc1", (W, E))
    yield from _linear("mlp.fc2", (E, W))
    yield from _linear("layer_norm2", (E,))


def _projector(config: ModelConfig) -> Weights:
    E, T = config.vision.hidden_size, config.text.hidden_size
    yield from _linear("linear_1", (T, E), bias=config.projector_bias)
    yield from _linear("linear_2", (T, T), bias=config.projector_bias)


def _decoder_layer(text: TextConfig) -> Weights:
    T, wide = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    for name, shape in (
        ("q_proj", (queries, T)),
        ("k_proj", (keys, T)),
        ("v_proj", (keys, T)),
        ("o_proj", (T, queries)),
    ):
        yield from _linear(f"self_attn.{name}", shape, bias=text.attention_bias)
    for name, shape in (("gate_proj", (wide, T)), ("up_proj", (wide, T)), ("down_proj", (T, wide))):
        yield from _linear(f"mlp.{name}", shape, bias=text.mlp_bias)
    yield "input_layernorm.weight", (T,)
    yield "post_attention_layernorm.weight", (T,)


def _linear(name: str, shape: Shape, *, bias: bool = True) -> Weights:
    """A weight, and a bias for each of its rows."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _layers(count: int, layer: Weights) -> Weights:
    weights = list(layer)
    for index in range(count):
        yield from _under(str(index), iter(weights))


def _under(prefix: str, weights: Weights) -> Weights:
    for name, shape in weights:
        yield f"{prefix}.{name}", shape
