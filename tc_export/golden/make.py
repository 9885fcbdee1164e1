# SPDX-License-Identifier: Apache-2.0
"""One call of each graph, with what the model gives for it and how far is near.

The truth is the PyTorch model in float64, with the weights of the engine's format. An engine may
err as far as PyTorch's own draws in that format allow: `tc_export.parity.tensors.tolerance`.

The decoder's call is the prefill of a short prompt with a clip between text, so that positions
after the clip and the mask inside it both show. It sees only cache rows that it writes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    DECODER,
    FRAMES_A_CALL,
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    LOGITS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    VISION,
    VISUAL_FEATURES,
    hidden_name,
    prefill_tokens,
)
from tc_export.contracts.parts import EngineGraph
from tc_export.engine.session import position_feeds
from tc_export.errors import CheckFailed
from tc_export.model.positions import TEXT, Clip, Layout, Segment, Text, lay_out
from tc_export.parity.noise import draws
from tc_export.parity.sequences import TokenSequence
from tc_export.parity.tensors.check import ReferenceSides
from tc_export.parity.tensors.tolerance import absolute_tolerance, token_errors
from tc_export.targets import Precision, Precisions

MOST_FRAMES = 3
MOST_LOGITS = 8
TEXT_BEFORE, TEXT_AFTER = 5, 7
SEED = 0


@dataclass(frozen=True)
class Golden:
    """A call of one graph.

    `inputs` are in the graph's own types. `outputs` are in float32, each with its tolerance.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, tuple[np.ndarray, float]]


def make_golden(
    references: ReferenceSides,
    precisions: Precisions,
    *,
    max_frames: int,
    max_length: int,
    parts: Sequence[EngineGraph] = (),
) -> dict[str, Golden]:
    """Golden data of both graphs, within the engines' shapes.

    Args:
        references: PyTorch in float64, and in the engines' formats.
        precisions: number format of each graph.
        max_frames: the profile's.
        max_length: the profile's.
        parts: of the decoder, in the order of their layers; each has a call of its own then.

    Returns:
        A call of each graph and each part, by its name.

    Raises:
        CheckFailed: the model's numbers leave the range of their format.
    """
    config = references.truth.config
    random = np.random.default_rng(SEED)
    segments = prompt_within(config, max_frames, max_length)
    frames = sum(segment.frames for segment in segments if isinstance(segment, Clip))
    size = config.vision.image_size
    pixels = random.standard_normal((frames, 3, size, size))
    layout, _ = lay_out(segments, config.temporal)
    tokens = random.integers(0, config.text.vocab_size, layout.length)
    vision, features = _vision(references, precisions.vision, pixels)
    embeds = references.truth.embed(tokens)
    embeds[layout.frame_ids >= 0] = features.reshape(-1, features.shape[-1])
    decoders = {DECODER: _decoder(references, precisions.decoder, embeds, layout)}
    decoders |= _decoder_parts(references, precisions.decoder, embeds, layout, parts)
    if not config.temporal.mask.is_prefix:
        frame_ids = np.full((1, max_length), TEXT, dtype=np.int64)
        frame_ids[0, : layout.length] = layout.frame_ids
        for decoder in decoders.values():
            decoder.inputs[KEY_FRAME_IDS] = frame_ids
    return {VISION: vision, **decoders}


def _vision(
    references: ReferenceSides, precision: Precision, pixels: np.ndarray
) -> tuple[Golden, np.ndarray]:
    """A call of the vision graph, and the true features of its frames."""
    stored = pixels.astype(precision.dtype.numpy)
    wide = [stored.astype(np.float64)]
    (truth,) = references.truth.features(wide)
    found = references.baseline.vision.feature_draws(wide, draws(references.draws))
    rounded = [features for (features,) in found]
    return _golden({PIXEL_VALUES: stored}, VISUAL_FEATURES, truth, rounded, precision), truth


def _decoder(
    references: ReferenceSides, precision: Precision, embeds: np.ndarray, layout: Layout
) -> Golden:
    """A call of the decoder graph, whose cache is empty before it."""
    layers = range(references.truth.config.text.num_hidden_layers)
    golden, _ = _some_layers(references, precision, embeds, layout, layers)
    return golden


def _decoder_parts(
    references: ReferenceSides,
    precision: Precision,
    embeds: np.ndarray,
    layout: Layout,
    parts: Sequence[EngineGraph],
) -> dict[str, Golden]:
    """A call of each part, which is given what the truth makes of the parts before it."""
    calls = {}
    entering = embeds
    for each in parts:
        assert each.part is not None
        calls[each.name], entering = _some_layers(
            references, precision, entering, layout, each.part.layers
        )
    return calls


def _some_layers(
    references: ReferenceSides,
    precision: Precision,
    entering: np.ndarray,
    layout: Layout,
    layers: range,
) -> tuple[Golden, np.ndarray]:
    """A call of these layers, and what they truly give: hidden states or logits."""
    stored = entering.astype(precision.dtype.numpy)
    positions = _positions(layout)
    sequence = TokenSequence(
        embeds=stored.astype(np.float64),
        layout=layout,
        logits_indices=positions[LOGITS_INDICES][0],
    )
    drawn, baseline = draws(references.draws), references.baseline.decoder
    rounded: Iterable[list[np.ndarray]]
    if layers.stop == references.truth.config.text.num_hidden_layers:
        output = LOGITS
        (truth,) = references.truth.logits([sequence], layers)
        rounded = baseline.logit_draws([sequence], drawn, layers)
    else:
        output = hidden_name(layers.stop)
        del positions[LOGITS_INDICES]
        (truth,) = references.truth.hidden([sequence], layers)
        rounded = baseline.hidden_draws([sequence], drawn, layers)
    taken = hidden_name(layers.start) if layers.start else INPUTS_EMBEDS
    feeds = {taken: stored[None], **positions}
    found = [values[None] for (values,) in rounded]
    return _golden(feeds, output, truth[None], found, precision), truth


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


def _golden(
    inputs: dict[str, np.ndarray],
    output: str,
    truth: np.ndarray,
    rounded: Sequence[np.ndarray],
    precision: Precision,
) -> Golden:
    """What an engine must give for `inputs`, and how near it must be: `rounded` are draws."""
    errors = [token_errors(x, truth) for x in rounded]
    tolerance = absolute_tolerance(truth, errors, precision.dtype)
    if not isfinite(tolerance):
        raise CheckFailed(
            f"PyTorch itself leaves the range of {precision}: its {output} are not finite, and no "
            "engine can be judged by them",
            hint="choose another --precision",
        )
    return Golden(inputs=inputs, outputs={output: (truth.astype(np.float32), tolerance)})
