# SPDX-License-Identifier: Apache-2.0
"""The shapes that an engine is built for: the smallest, the usual and the largest of each input.

One wide profile serves prefill and decode: each further one costs the builder memory and time, and
makes the engine larger. The cache has one size, that of the bundle's profile, so that it can be
updated in place and a decode step can be captured once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    FRAMES_A_CALL,
    LOGITS_A_CALL,
    GraphTensor,
    decoder_inputs,
    prefill_tokens,
    vision_inputs,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """What an input's shape may be, axis by axis."""

    smallest: Shape
    usual: Shape
    largest: Shape


def vision_shapes(config: ModelConfig, max_frames: int) -> dict[str, ShapeRange]:
    """Shapes of the vision graph's input; longer clips take several calls."""
    most = min(max_frames, FRAMES_A_CALL)
    return _ranges(vision_inputs(config), {"frames": (1, most, most)})


def decoder_shapes(
    config: ModelConfig, max_length: int, layers: range | None = None
) -> dict[str, ShapeRange]:
    """Shapes of the decoder graph's inputs, for one sequence of at most `max_length` tokens.

    With `layers`, of the inputs of the part that has these.
    """
    most = prefill_tokens(config, max_length)
    lengths = {
        "batch": (1, 1, 1),
        "tokens": (1, most, most),
        "logits": (1, 1, min(most, LOGITS_A_CALL)),
        "cache_rows": (max_length, max_length, max_length),
    }
    return _ranges(decoder_inputs(config, layers), lengths)


def _ranges(
    tensors: Iterable[GraphTensor], lengths: Mapping[str, tuple[int, int, int]]
) -> dict[str, ShapeRange]:
    """Each tensor's shape where the dynamic axes are smallest, usual and largest."""
    by_size = [{axis: length[size] for axis, length in lengths.items()} for size in range(3)]
    return {tensor.name: ShapeRange(*map(tensor.shape, by_size)) for tensor in tensors}
