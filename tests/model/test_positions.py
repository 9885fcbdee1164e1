# SPDX-License-Identifier: Apache-2.0
"""Positions and masks against the brute-force reading of the method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tc_export.config import AttentionMask
from tc_export.errors import UsageError
from tc_export.model.decoder import frame_block_mask
from tc_export.model.positions import (
    Clip,
    Cursor,
    Layout,
    Segment,
    Text,
    frame_chunks,
    lay_out,
    pad,
)
from tests.model.brute_force import MASKS, READINGS, Run, rotary_positions, tokens_of, visibility
from tests.model.sequences import (
    CUTTABLE_MASKS,
    MASK_NAMES,
    PREFIX_MASKS,
    READING_NAMES,
    RUNS,
    segments_of,
    temporal_config,
)

ARRAYS = ("position_ids", "temporal_ids", "frame_ids", "kv_end")


def whole(runs: Sequence[Run], mask: str, after_clip: str) -> tuple[Layout, Cursor]:
    return lay_out(segments_of(runs), temporal_config(mask, after_clip))


def assert_same(found: Layout, expected: Layout) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name


@given(RUNS, MASK_NAMES, READING_NAMES)
def test_a_whole_sequence(runs: list[Run], mask: str, after_clip: str) -> None:
    layout, cursor = whole(runs, mask, after_clip)
    tokens = tokens_of(runs, after_clip)
    following = tokens_of([*runs, 1], after_clip)[-1]

    np.testing.assert_array_equal(layout.position_ids, np.arange(len(tokens)))
    np.testing.assert_array_equal(layout.temporal_ids, [token.temporal for token in tokens])
    assert (cursor.position, cursor.temporal) == (len(tokens), following.temporal)
    assert layout.kv_end.dtype == np.int32


@given(RUNS, MASK_NAMES, READING_NAMES)
def test_frame_ids_tell_frames_apart(runs: list[Run], mask: str, after_clip: str) -> None:
    layout, cursor = whole(runs, mask, after_clip)
    tokens = tokens_of(runs, after_clip)
    identities = list(dict.fromkeys((t.clip, t.frame) for t in tokens if t.clip >= 0))
    expected = [identities.index((t.clip, t.frame)) if t.clip >= 0 else -1 for t in tokens]

    np.testing.assert_array_equal(layout.frame_ids, expected)
    assert cursor.frame == len(identities)


@given(RUNS, st.sampled_from(PREFIX_MASKS), READING_NAMES)
def test_kv_end_is_the_mask(runs: list[Run], mask: str, after_clip: str) -> None:
    layout, _ = whole(runs, mask, after_clip)
    visible = np.arange(layout.length) < layout.kv_end[:, None]

    assert visible.tolist() == visibility(tokens_of(runs, after_clip), mask)


@given(RUNS, READING_NAMES, st.integers(0, 3), st.sampled_from(["left", "right"]), RUNS)
def test_frame_block_mask(
    runs: list[Run], after_clip: str, spare: int, side: str, other_runs: list[Run]
) -> None:
    """In a padded batch, with more cache rows than tokens."""
    layouts = [whole(each, "frame_block", after_clip)[0] for each in (runs, other_runs)]
    batch = pad(layouts, side)  # type: ignore[arg-type]
    rows = batch.length + 1 + spare
    key_frame_ids = np.full((2, rows), -1)
    for b, layout in enumerate(layouts):
        key_frame_ids[b, : layout.length] = layout.frame_ids

    visible = frame_block_mask(
        torch.from_numpy(batch.kv_end),
        torch.from_numpy(batch.position_ids),
        torch.from_numpy(key_frame_ids),
    ).numpy()

    for b, each in enumerate((runs, other_runs)):
        expected = np.zeros((batch.length, rows), dtype=bool)
        for s, n in enumerate(batch.position_ids[b]):
            if n >= 0:
                row = visibility(tokens_of(each, after_clip), "frame_block")[n]
                expected[s, : len(row)] = row
        np.testing.assert_array_equal(visible[b], expected)


@pytest.mark.parametrize(("after_clip", "first_after"), [("restart", 5 + 4), ("share", 5 + 4 - 1)])
def test_one_clip_as_the_definition_writes_it(after_clip: str, first_after: int) -> None:
    """v_s = 5, F = 4, m = 3, then text: T by the closed formulas."""
    before, frames, per_frame, after = 5, 4, 3, 6
    layout, _ = whole([before, (frames, per_frame), after], "frame_block_causal", after_clip)
    first, last = before, before + frames * per_frame - 1
    for n, temporal in enumerate(layout.temporal_ids.tolist()):
        if n < first:
            assert temporal == n
        elif n <= last:
            assert temporal == first + (n - first) // per_frame
        else:
            assert temporal == first_after + (n - last - 1)


@given(RUNS, READING_NAMES, st.floats(0, 4), st.integers(0, 9))
def test_decode_has_a_closed_formula(
    runs: list[Run], after_clip: str, gamma: float, generated: int
) -> None:
    """P = (1 + gamma) n + gamma delta, where each clip adds its own delta."""
    layout, cursor = whole([*runs, generated], "frame_block_causal", after_clip)
    delta = sum(
        run[0] - run[0] * run[1] - (after_clip == "share") for run in runs if isinstance(run, tuple)
    )
    n, temporal = cursor.position, cursor.temporal
    assert n == layout.length
    assert n + gamma * temporal == pytest.approx((1 + gamma) * n + gamma * delta, abs=1e-9)
    assert (
        n + gamma * temporal
        == rotary_positions(tokens_of([*runs, generated, 1], after_clip), gamma)[-1]
    )


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[Run], list[list[Segment]]]:
    """A sequence, and the same cut into parts: texts anywhere, clips between frames."""
    runs = draw(RUNS)
    parts: list[list[Segment]] = [[]]
    for run in runs:
        left = run if isinstance(run, int) else run[0]
        done = 0
        while True:
            take = draw(st.integers(min(1, left), left))
            parts[-1].append(Text(take) if isinstance(run, int) else Clip(take, run[1], done > 0))
            left, done = left - take, done + take
            if draw(st.booleans()):
                parts.append([])
            if not left:
                break
    return runs, parts


@given(pieces(), st.sampled_from(CUTTABLE_MASKS), READING_NAMES)
def test_piece_by_piece_equals_whole(
    cut: tuple[list[Run], list[list[Segment]]], mask: str, after_clip: str
) -> None:
    runs, parts = cut
    expected, end = whole(runs, mask, after_clip)
    cursor = Cursor()
    start = 0
    for part in parts:
        layout, cursor = lay_out(part, temporal_config(mask, after_clip), cursor)
        assert_same(layout, expected.tokens(start, start + layout.length))
        start += layout.length
    assert (start, cursor) == (expected.length, end)


def test_a_clip_in_parts_is_refused_where_frames_look_ahead() -> None:
    with pytest.raises(UsageError, match="full_visual") as error:
        lay_out([Clip(2, 3, continues=True)], temporal_config("full_visual"), Cursor(6, 2, 2))
    assert "frame_block_causal" in str(error.value.hint)


@pytest.mark.parametrize("segment", [Clip(0, 4), Clip(3, 0), Clip(-1, -4), Text(-1)])
def test_impossible_segments_are_refused(segment: Segment) -> None:
    with pytest.raises(UsageError, match=r"-1|0"):
        lay_out([segment], temporal_config())


@given(st.lists(RUNS, min_size=1, max_size=3), MASK_NAMES, st.sampled_from(["left", "right"]))
def test_padding_moves_nothing(batch: list[list[Run]], mask: str, side: str) -> None:
    layouts = [whole(runs, mask, "restart")[0] for runs in batch]
    padded = pad(layouts, side)  # type: ignore[arg-type]
    for b, layout in enumerate(layouts):
        missing = padded.length - layout.length
        row = Layout(**{name: getattr(padded, name)[b] for name in ARRAYS})
        real = slice(missing, None) if side == "left" else slice(None, layout.length)
        padding = slice(None, missing) if side == "left" else slice(layout.length, None)

        assert_same(row.tokens(*real.indices(padded.length)[:2]), layout)
        assert set(row.position_ids[padding]) <= {-1}
        assert set(row.temporal_ids[padding]) <= {-1}
        assert set(row.frame_ids[padding]) <= {-1}
        assert set(row.kv_end[padding]) <= {0}
        # n is cumsum(attention_mask) - 1, as Hugging Face computes it.
        attention_mask = np.ones(padded.length, dtype=int)
        attention_mask[padding] = 0
        np.testing.assert_array_equal(
            np.where(attention_mask, attention_mask.cumsum() - 1, -1), row.position_ids
        )


@given(RUNS, st.sampled_from(CUTTABLE_MASKS), st.integers(1, 12))
def test_chunks_cover_and_never_split_a_frame(runs: list[Run], mask: str, max_tokens: int) -> None:
    layout, _ = whole(runs, mask, "restart")
    largest_frame = max((run[1] for run in runs if isinstance(run, tuple)), default=1)
    if largest_frame > max_tokens:
        if layout.length > max_tokens:
            with pytest.raises(UsageError, match=f"does not fit a prefill of {max_tokens}"):
                frame_chunks(layout, AttentionMask(mask), max_tokens)
        return

    spans = frame_chunks(layout, AttentionMask(mask), max_tokens)

    covered = [n for start, stop in spans for n in range(start, stop)]
    assert covered == list(range(layout.length))
    assert all(0 < stop - start <= max_tokens for start, stop in spans)
    tokens = tokens_of(runs, "restart")
    for _, cut in spans[:-1]:
        before, after = tokens[cut - 1], tokens[cut]
        assert after.clip < 0 or (before.clip, before.frame) != (after.clip, after.frame)
    for start, stop in spans[:-1]:  # no span could have held the next unit as well
        unit = (tokens[stop].clip, tokens[stop].frame)
        size = sum((t.clip, t.frame) == unit for t in tokens) if tokens[stop].clip >= 0 else 1
        assert stop - start + size > max_tokens


@given(RUNS, st.integers(1, 40))
def test_chunks_of_a_mask_that_looks_ahead(runs: list[Run], max_tokens: int) -> None:
    layout, _ = whole(runs, "full_visual", "restart")
    has_clip = any(isinstance(run, tuple) for run in runs)
    if has_clip and layout.length > max_tokens:
        with pytest.raises(UsageError, match="full_visual") as error:
            frame_chunks(layout, AttentionMask.FULL_VISUAL, max_tokens)
        assert str(layout.length) in str(error.value)
    else:
        spans = frame_chunks(layout, AttentionMask.FULL_VISUAL, max_tokens)
        assert [n for span in spans for n in range(*span)] == list(range(layout.length))


def test_the_brute_force_itself() -> None:
    """Figure 3 by hand: text, two frames of two, text."""
    tokens = tokens_of([1, (2, 2), 1], "restart")
    figure = {
        "causal": ["#.....", "##....", "###...", "####..", "#####.", "######"],
        "full_visual": ["#.....", "#####.", "#####.", "#####.", "#####.", "######"],
        "frame_block": ["#.....", "###...", "###...", "#..##.", "#..##.", "######"],
        "frame_block_causal": ["#.....", "###...", "###...", "#####.", "#####.", "######"],
    }
    assert set(figure) == set(MASKS)
    for mask, rows in figure.items():
        drawn = ["".join(".#"[seen] for seen in row) for row in visibility(tokens, mask)]
        assert drawn == rows, mask
    temporal = {r: [t.temporal for t in tokens_of([1, (2, 2), 2], r)] for r in READINGS}
    assert temporal == {"restart": [0, 1, 1, 2, 2, 3, 4], "share": [0, 1, 1, 2, 2, 2, 3]}
