# SPDX-License-Identifier: Apache-2.0
"""What goes through the layers, and what its tokens are called."""

from __future__ import annotations

import numpy as np
import pytest

from tc_export.errors import UnsupportedEnvironment
from tc_export.parity.layers.sequences import layer_sequences, places_of
from tests.exported import Exported


def test_the_profile_is_filled_to_its_last_row(exported: Exported) -> None:
    first, second = layer_sequences(exported.config, max_frames=3, max_length=70)
    assert first.length == 70
    assert first.labels[:5] == ("text before",) * 4 + ("frame 1",)
    assert first.labels[-5:] == ("text after", *["decode"] * 4)
    assert {x for x in first.labels if x.startswith("frame")} == {"frame 1", "frame 2", "frame 3"}
    assert second.labels[0] == "frame 1"
    assert "text between" in second.labels
    assert len(second.spans) == 1
    assert places_of([first, second])[0] == "text before"
    assert places_of([first, second])[-3:] == ("text between", "text after", "decode")


def test_calls_cover_every_token_once_and_split_no_frame(exported: Exported) -> None:
    for sequence in layer_sequences(exported.config, max_frames=3, max_length=70):
        covered = [x for start, stop in sequence.spans for x in range(start, stop)]
        assert covered == list(range(sequence.length))
        for start, _ in sequence.spans[1:]:
            frames = sequence.layout.frame_ids[start - 1 : start + 1]
            assert frames[0] != frames[1] or frames[0] == -1
    first = layer_sequences(exported.config, max_frames=3, max_length=70)[0]
    assert len(first.spans) >= 3 + 4  # prefill in several calls, then steps
    assert [stop - start for start, stop in first.spans[-4:]] == [1] * 4


def test_frames_are_distinct_and_wanted_tokens_end_with_the_last(exported: Exported) -> None:
    for sequence in layer_sequences(exported.config, max_frames=3, max_length=70):
        pixels = sequence.pixel_values.reshape(len(sequence.pixel_values), -1)
        assert len(np.unique(pixels, axis=0)) == len(pixels)
        for span in sequence.spans:
            wanted = sequence.wanted(span)
            assert wanted[-1] == span[1] - 1
            assert wanted.min() >= span[0]
            assert len(set(wanted)) == len(wanted)


def test_a_profile_without_room_is_refused(exported: Exported) -> None:
    with pytest.raises(UnsupportedEnvironment, match="too small"):
        layer_sequences(exported.config, max_frames=1, max_length=3)
