# SPDX-License-Identifier: Apache-2.0
"""The shapes that an engine is built for: the smallest, the usual and the largest of each input.

One wide profile serves prefill and decode: each further one costs the builder memory and time, and
makes the engine larger. The cache has one size, that of the bundle's profile, so that it can be
updated in place and a decode step can be captured once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tc_export.config import ModelConfig
from tc_export.engine.interface import FRAMES_A_CALL, LOGITS_A_CALL
from tc_export.engine.session import DEFAULT_CHUNK_TOKENS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """What an input's shape may be, axis by axis."""

    smallest: Shape
    usual: Shape
    largest: Shape


def vision_shapes(config: ModelConfig, max_frames: int) -> dict[str, ShapeRange]:
    """Shapes of the vision graph's input; longer clips take several calls."""
    size = config.vision.image_size
    most = min(max_frames, FRAMES_A_CALL)
    ranges = [(frames, 3, size, size) for frames in (1, most, most)]
    return {"pixel_values": ShapeRange(*ranges)}


def decoder_shapes(config: ModelConfig, max_length: int) -> dict[str, ShapeRange]:
    """Shapes of the decoder graph's inputs, for one sequence of at most `max_length` tokens."""
    text = config.text
    most = most_tokens_a_call(config, max_length)
    lengths = (1, most, most)
    per_token = ShapeRange(*((1, tokens) for tokens in lengths))
    embeds = ShapeRange(*((1, tokens, text.hidden_size) for tokens in lengths))
    logits = ShapeRange((1, 1), (1, 1), (1, min(most, LOGITS_A_CALL)))
    cache = (1, text.num_key_value_heads, max_length, text.head_dim)
    ids = ("position_ids", "temporal_ids", "kv_end")
    shapes = {"inputs_embeds": embeds, **dict.fromkeys(ids, per_token), "logits_indices": logits}
    for layer in range(text.num_hidden_layers):
        for part in ("key", "value"):
            shapes[f"past_key_values.{layer}.{part}"] = ShapeRange(cache, cache, cache)
    return shapes


def most_tokens_a_call(config: ModelConfig, max_length: int) -> int:
    """Tokens of the largest prefill call: a chunk of whole frames, or all where nothing is cut."""
    if not config.temporal.mask.allows_frame_chunks:
        return max_length
    return min(max_length, max(DEFAULT_CHUNK_TOKENS, config.tokens_per_frame))


def trtexec_flags(shapes: Mapping[str, ShapeRange]) -> dict[str, str]:
    """The shapes as trtexec takes them: `--minShapes`, `--optShapes`, `--maxShapes`."""

    def spell(which: str) -> str:
        return ",".join(
            f"{name}:{'x'.join(map(str, getattr(shape, which)))}" for name, shape in shapes.items()
        )

    return {
        "--minShapes": spell("smallest"),
        "--optShapes": spell("usual"),
        "--maxShapes": spell("largest"),
    }
