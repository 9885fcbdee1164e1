# SPDX-License-Identifier: Apache-2.0
"""The cache: prefill in parts, decode, and questions that share one video."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tc_export.config import AttentionMask
from tc_export.model.decoder import Cache
from tc_export.model.positions import Layout, frame_chunks, lay_out, pad
from tc_export.model.tc_llava import TcLlava
from tests.model.brute_force import MASKS, Run, tokens_of
from tests.model.sequences import CUTTABLE_MASKS, SEQUENCES, segments_of, temporal_config
from tests.model.small_models import random_embeds, random_model, run

VIDEO: list[Run] = [2, (4, 3), 1, (2, 2), 3]


def tolerance(model: TcLlava, logits: Tensor) -> dict[str, float]:
    """Room for another order of summation: 64 units in the last place of the largest logit."""
    eps = torch.finfo(model.embed_tokens.weight.dtype).eps
    return {"rtol": 0.0, "atol": 64 * eps * float(logits.abs().max())}


def row_layout(model: TcLlava, runs: list[Run]) -> Layout:
    return lay_out(segments_of(runs), model.config.temporal)[0]


def whole_layout(model: TcLlava, runs: list[Run]) -> Layout:
    return row_layout(model, runs).batched()


def run_in_parts(
    model: TcLlava,
    embeds: Tensor,
    layout: Layout,
    spans: Sequence[tuple[int, int]],
    cache: Cache | None = None,
) -> tuple[Tensor, Cache]:
    """Run span after span of an unpadded sequence over one cache."""
    cache = cache or model.new_cache(1, layout.length)
    frames = torch.full((1, cache[0][0].shape[2]), -1)
    parts = []
    for start, stop in spans:
        part = layout.tokens(start, stop)
        logits, cache = run(model, embeds[:, start:stop], part, cache, frames)
        frames[:, start:stop] = torch.from_numpy(part.frame_ids)
        parts.append(logits)
    return torch.cat(parts, dim=1), cache


def spans_between(cuts: Sequence[int], length: int) -> list[tuple[int, int]]:
    edges = sorted({0, *cuts, length})
    return list(pairwise(edges))


def frame_boundaries(runs: list[Run]) -> list[int]:
    """Places of the sequence at which no frame is cut."""
    tokens = tokens_of(runs, "restart")
    return [
        n
        for n in range(1, len(tokens))
        if tokens[n].clip < 0
        or (tokens[n].clip, tokens[n].frame) != (tokens[n - 1].clip, tokens[n - 1].frame)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("max_tokens", [4, 7])
@pytest.mark.parametrize("mask", CUTTABLE_MASKS)
def test_prefill_in_frame_chunks_equals_prefill_at_once(
    mask: str, max_tokens: int, dtype: torch.dtype
) -> None:
    model = random_model(temporal_config(mask, gamma=0.3), dtype=dtype)
    for runs in SEQUENCES.values():
        layout = whole_layout(model, runs)
        embeds = random_embeds(model, layout.length)
        spans = frame_chunks(row_layout(model, runs), AttentionMask(mask), max_tokens)
        at_once, cache_at_once = run_in_parts(model, embeds, layout, [(0, layout.length)])

        in_parts, cache = run_in_parts(model, embeds, layout, spans)

        room = tolerance(model, at_once)
        torch.testing.assert_close(in_parts, at_once, **room)
        for found, expected in zip(cache, cache_at_once, strict=True):
            torch.testing.assert_close(found[0], expected[0], **room)
            torch.testing.assert_close(found[1], expected[1], **room)


@settings(max_examples=30)
@given(st.sampled_from(CUTTABLE_MASKS), st.sets(st.sampled_from(frame_boundaries(VIDEO))))
def test_any_cut_between_frames(mask: str, cuts: set[int]) -> None:
    model = random_model(temporal_config(mask))
    layout = whole_layout(model, VIDEO)
    embeds = random_embeds(model, layout.length)
    at_once, _ = run_in_parts(model, embeds, layout, [(0, layout.length)])
    in_parts, _ = run_in_parts(model, embeds, layout, spans_between(sorted(cuts), layout.length))
    torch.testing.assert_close(in_parts, at_once, **tolerance(model, at_once))


@pytest.mark.parametrize(
    ("mask", "cut", "matters"),
    [
        ("frame_block_causal", 4, True),
        ("frame_block", 4, True),
        ("full_visual", 5, True),  # between two frames of a clip: not allowed there either
        ("causal", 4, False),  # a frame is nothing special to it
    ],
)
def test_a_cut_inside_a_frame_is_wrong(mask: str, cut: int, matters: bool) -> None:
    model = random_model(temporal_config(mask))
    layout = whole_layout(model, VIDEO)
    embeds = random_embeds(model, layout.length)
    at_once, _ = run_in_parts(model, embeds, layout, [(0, layout.length)])
    in_parts, _ = run_in_parts(model, embeds, layout, spans_between([cut], layout.length))
    difference = (at_once - in_parts)[0, -1].abs().max()
    assert (difference > 1e-3) if matters else (difference < 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_decode_equals_the_full_forward(mask: str, dtype: torch.dtype) -> None:
    model = random_model(temporal_config(mask, "share", gamma=0.3), dtype=dtype)
    layout = whole_layout(model, [*VIDEO, 6])
    embeds = random_embeds(model, layout.length)
    at_once, _ = run_in_parts(model, embeds, layout, [(0, layout.length)])
    steps = range(layout.length - 6, layout.length)
    decoded, _ = run_in_parts(model, embeds, layout, spans_between(steps, layout.length))
    torch.testing.assert_close(decoded, at_once, **tolerance(model, at_once))


@pytest.mark.parametrize("mask", MASKS)
def test_rows_past_the_last_token_are_never_seen(mask: str) -> None:
    """A cache larger than needed, and full of what an earlier sequence left there."""
    model = random_model(temporal_config(mask))
    layout = whole_layout(model, VIDEO)
    embeds = random_embeds(model, layout.length)
    spans = spans_between([layout.length - 2, layout.length - 1], layout.length)
    expected, tight = run_in_parts(model, embeds, layout, spans)
    used = [
        (torch.full_like(key, 1e3), torch.full_like(value, -1e3))
        for key, value in model.new_cache(1, layout.length + 9)
    ]

    found, roomy = run_in_parts(model, embeds, layout, spans, used)

    torch.testing.assert_close(found, expected, **tolerance(model, expected))
    for (key, value), (tight_key, tight_value) in zip(roomy, tight, strict=True):
        torch.testing.assert_close(key[:, :, : layout.length], tight_key)
        torch.testing.assert_close(value[:, :, : layout.length], tight_value)
        assert (key[:, :, layout.length :] == 1e3).all()
        assert (value[:, :, layout.length :] == -1e3).all()


@pytest.mark.parametrize("mask", MASKS)
def test_a_forked_cache_answers_as_from_scratch(mask: str) -> None:
    """Watch once, ask two questions of different lengths."""
    model = random_model(temporal_config(mask, gamma=0.3))
    video: list[Run] = [2, (4, 3)]
    seen = whole_layout(model, video).length
    questions = [random_embeds(model, length, seed) for length, seed in ((4, 11), (6, 12))]
    watched = random_embeds(model, seen)
    video_layout = row_layout(model, video)
    _, cache = run(model, watched, video_layout.batched(), model.new_cache(1, seen + 6))
    frames = torch.full((1, seen + 6), -1)
    frames[0, :seen] = torch.from_numpy(video_layout.frame_ids)
    kept = [(key.clone(), value.clone()) for key, value in cache]
    for question in questions:
        length = question.shape[1]
        layout = whole_layout(model, [*video, length])
        scratch, _ = run(model, torch.cat((watched, question), dim=1), layout)

        asked, _ = run(model, question, layout.tokens(seen, seen + length), cache, frames)

        torch.testing.assert_close(asked, scratch[:, seen:], **tolerance(model, scratch))
    for (key, value), (kept_key, kept_value) in zip(cache, kept, strict=True):
        assert torch.equal(key, kept_key)
        assert torch.equal(value, kept_value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_padded_batch_decodes_as_each_alone(mask: str, side: Any) -> None:
    """Prompts of different lengths in one batch, then three steps together."""
    model = random_model(temporal_config(mask, gamma=0.3))
    prompts: list[list[Run]] = [[1, (2, 2), 1], [3], VIDEO]
    wholes = [row_layout(model, [*runs, 3]) for runs in prompts]
    lengths = [whole.length - 3 for whole in wholes]
    rows = max(lengths) + 3 + 1
    alone = [random_embeds(model, length + 3, seed=b) for b, length in enumerate(lengths)]
    prompt = pad([row_layout(model, runs) for runs in prompts], side)
    embeds = torch.full((3, prompt.length, alone[0].shape[-1]), 50.0).double()
    for b, length in enumerate(lengths):
        embeds[b, torch.from_numpy(prompt.position_ids[b] >= 0)] = alone[b][0, :length]
    _, cache = run(model, embeds, prompt, model.new_cache(3, rows))
    frames = torch.full((3, rows), -1)
    for b, (whole, length) in enumerate(zip(wholes, lengths, strict=True)):
        frames[b, :length] = torch.from_numpy(whole.frame_ids[:length])

    for step in range(3):
        at = [length + step for length in lengths]
        parts = [whole.tokens(n, n + 1) for whole, n in zip(wholes, at, strict=True)]
        token = torch.cat([each[:, n : n + 1] for each, n in zip(alone, at, strict=True)])
        logits, cache = run(model, token, pad(parts, side), cache, frames)
        for b, n in enumerate(at):
            expected, _ = run(model, alone[b], wholes[b].batched())
            room = tolerance(model, expected)
            torch.testing.assert_close(logits[b, 0], expected[0, n], **room)
