# SPDX-License-Identifier: Apache-2.0
"""Golden data: one call of each graph, with what the model gives for it and how far is near.

The truth is the PyTorch model in float64. An engine may err twice as much as plain PyTorch does in
the engine's own format, plus a floor: `tc_export.parity.tensors.tolerance`.

The decoder's call is the prefill of a short prompt with a clip between text, so that positions
after the clip and the mask inside it both show. It sees only cache rows that it writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    CACHE_PARTS,
    DECODER,
    FRAMES_A_CALL,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    VISION,
    VISUAL_FEATURES,
    is_past,
    past_name,
    prefill_tokens,
)
from tc_export.dtypes import DType
from tc_export.engine.interface import Engine
from tc_export.engine.session import position_feeds
from tc_export.errors import CheckFailed
from tc_export.model.positions import Clip, Layout, Segment, Text, lay_out
from tc_export.model.tc_llava import TcLlava
from tc_export.parity.tensors.tolerance import compare
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine

MOST_FRAMES = 3
MOST_LOGITS = 8
TEXT_BEFORE, TEXT_AFTER = 5, 7
SEED = 0

Feeds = dict[str, dict[str, np.ndarray]]
"""Inputs of both graphs, by graph."""


@dataclass(frozen=True)
class Golden:
    """A call of one graph.

    `inputs` are in the graph's own types. `outputs` are in float32, each with its tolerance.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, tuple[np.ndarray, float]]


def make_golden(
    config: ModelConfig,
    load_model: Callable[[torch.dtype], TcLlava],
    precisions: Mapping[str, str],
    *,
    max_frames: int,
    max_length: int,
) -> dict[str, Golden]:
    """Golden data of both graphs, within the engines' shapes.

    Args:
        config: the model's.
        load_model: reads the reference model in a given type; it is held in float64 for a while.
        precisions: number format of each graph, by name.
        max_frames: the profile's.
        max_length: the profile's.

    Raises:
        CheckFailed: the model's numbers leave the range of their format.
    """
    truth = load_model(torch.float64)
    true_engines = {VISION: TorchVisionEngine(truth), DECODER: TorchDecoderEngine(truth)}
    floats, integers = _feeds(config, truth, max_frames, max_length)
    golden = {}
    for graph, output in ((VISION, VISUAL_FEATURES), (DECODER, LOGITS)):
        dtype = DType(precisions[graph])
        inputs = {name: x.astype(dtype.numpy) for name, x in floats[graph].items()}
        inputs |= integers[graph]
        rounded = load_model(dtype.torch)
        engine = TorchVisionEngine(rounded) if graph == VISION else TorchDecoderEngine(rounded)
        golden[graph] = _call(inputs, output, true_engines[graph], engine, precisions[graph])
    return golden


def _feeds(
    config: ModelConfig, truth: TcLlava, max_frames: int, max_length: int
) -> tuple[Feeds, Feeds]:
    """The floating-point inputs in float64, and the integer ones, of random frames and tokens."""
    random = np.random.default_rng(SEED)
    segments = prompt_within(config, max_frames, max_length)
    frames = sum(segment.frames for segment in segments if isinstance(segment, Clip))
    size = config.vision.image_size
    pixels = random.standard_normal((frames, 3, size, size))
    layout, _ = lay_out(segments, config.temporal)
    tokens = random.integers(0, config.text.vocab_size, layout.length)
    features = TorchVisionEngine(truth).run({PIXEL_VALUES: pixels})[VISUAL_FEATURES]
    embeds = TorchDecoderEngine(truth).embedding_table()[tokens]
    embeds[layout.frame_ids >= 0] = features.reshape(-1, features.shape[-1])
    floats = {
        VISION: {PIXEL_VALUES: pixels},
        DECODER: {INPUTS_EMBEDS: embeds[None], **_cache(config, layout.length)},
    }
    return floats, {VISION: {}, DECODER: _positions(layout)}


def prompt_within(config: ModelConfig, max_frames: int, max_length: int) -> list[Segment]:
    """Text, a clip of at most three frames, and text, that fit one call of the engine."""
    room = prefill_tokens(config, max_length)
    frames = min(MOST_FRAMES, FRAMES_A_CALL, max_frames)
    while frames > 1 and room - frames * config.tokens_per_frame < TEXT_BEFORE + TEXT_AFTER:
        frames -= 1
    left = room - frames * config.tokens_per_frame
    before = min(TEXT_BEFORE, left // 2)
    after = min(TEXT_AFTER, left - before)
    clip = Clip(frames, config.tokens_per_frame)
    segments: list[Segment] = [Text(before), clip, Text(after)]
    return [segment for segment in segments if segment.length]


def _positions(layout: Layout) -> dict[str, np.ndarray]:
    rows = min(layout.length, MOST_LOGITS)
    wanted = np.linspace(0, layout.length - 1, rows).round().astype(np.int64)
    return {**position_feeds(layout.batched()), LOGITS_INDICES: wanted[None]}


def _cache(config: ModelConfig, rows: int) -> dict[str, np.ndarray]:
    """An empty cache, just large enough: the engine's has more rows, which nothing sees."""
    text = config.text
    zeros = np.zeros((1, text.num_key_value_heads, rows, text.head_dim))
    return {
        past_name(layer, part): zeros
        for layer in range(text.num_hidden_layers)
        for part in CACHE_PARTS
    }


def _call(
    inputs: dict[str, np.ndarray], output: str, truth: Engine, pytorch: Engine, precision: str
) -> Golden:
    """Run both engines on the same numbers, those of the graph's own type."""
    feeds = {
        name: x.astype(np.float64) if DType.from_numpy(x.dtype).is_float else x
        for name, x in inputs.items()
    }
    true_values, values = (engine.run(feeds)[output] for engine in (truth, pytorch))
    compared = compare(
        "golden", 0, output, truth=true_values, pytorch=values, engine=values, precision=precision
    )
    if not compared.is_judged:
        raise CheckFailed(
            f"PyTorch itself leaves the range of {precision}: its {output} are not finite, and no "
            "engine can be judged by them",
            hint="choose another --precision",
        )
    kept = {name: x for name, x in inputs.items() if not is_past(name)}
    return Golden(
        inputs=kept, outputs={output: (true_values.astype(np.float32), compared.tolerance)}
    )
