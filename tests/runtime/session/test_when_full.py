# SPDX-License-Identifier: Apache-2.0
"""A full session makes room as it was told to, and then answers about the frames that stayed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tc_export.errors import UsageError, VideoError
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.session.video_session import VideoSession
from tests.bundled import MAX_FRAMES
from tests.runtime.session.conftest import reconfigured
from tests.runtime.session.test_video_session import (
    ONE_TOKEN,
    QUESTION,
    QUESTIONS,
    TALKATIVE,
    last_logits,
    said,
)
from tests.runtime.test_answering import frames

PICTURES = frames(10, seed=3)
HELD = {
    "drop-oldest": {
        4: [2, 3, 4],
        5: [2, 3, 4, 5],
        6: [4, 5, 6],
        7: [4, 5, 6, 7],
        8: [6, 7, 8],
        9: [6, 7, 8, 9],
    },
    "stride": {
        4: [0, 2, 4],
        5: [0, 2, 4, 5],
        6: [0, 4, 6],
        7: [0, 4, 6, 7],
        8: [0, 6, 8],
        9: [0, 6, 8, 9],
    },
}
"""Which frames a session of four holds after the one of that number has come; by hand."""


@pytest.mark.parametrize("after_clip", ["restart", "share"])
@pytest.mark.parametrize("when_full", ["drop-oldest", "stride"])
def test_it_is_exact_until_the_first_goes_and_then_one_shot_of_those_that_stay(
    opened: VideoLanguageModel, when_full: Any, after_clip: str
) -> None:
    model = reconfigured(opened, after_clip=after_clip)
    assert MAX_FRAMES == 4
    with VideoSession(model, when_full) as session:
        for number, picture in enumerate(PICTURES):
            session.append(picture, number)
            places = HELD[when_full].get(number, [*range(number + 1)])
            assert session.times_s == tuple(places)
            assert session.frames == len(places) <= session.capacity
            assert session.exact == (number < MAX_FRAMES)
            seen = [PICTURES[place] for place in places]
            found = last_logits(model, lambda: session.answer(QUESTION, ONE_TOKEN))
            once = last_logits(model, partial(model.answer, seen, QUESTION, ONE_TOKEN))
            np.testing.assert_allclose(found, once, rtol=0, atol=2e-5 * np.abs(once).max())
            answer = session.answer(QUESTION, TALKATIVE)
            assert answer.exact == session.exact
            assert said(answer) == said(model.answer(seen, QUESTION, TALKATIVE))
    assert model.answer(seen, QUESTION, ONE_TOKEN).exact


@pytest.mark.parametrize("when_full", ["drop-oldest", "stride"])
def test_every_answer_says_whether_it_is_exact(model: VideoLanguageModel, when_full: Any) -> None:
    session = VideoSession(model, when_full)
    for number, picture in enumerate(PICTURES[: MAX_FRAMES + 1]):
        exact = number < MAX_FRAMES
        session.append(picture, number)
        stream = session.ask(QUESTION, TALKATIVE)
        assert "".join(stream) == stream.answer.text
        answers = [stream.answer, *session.answer_many(QUESTIONS, TALKATIVE)]
        assert {answer.exact for answer in answers} == {exact}


@pytest.mark.parametrize("when_full", ["drop-oldest", "stride"])
def test_nothing_goes_for_a_frame_that_is_refused(
    model: VideoLanguageModel, when_full: Any
) -> None:
    session = VideoSession(model, when_full)
    for number, picture in enumerate(PICTURES[:MAX_FRAMES]):
        session.append(picture, number)
    for picture, time_s in ((PICTURES[5][:20], 9), (PICTURES[5], 1)):
        with pytest.raises(VideoError):
            session.append(picture, time_s)
    assert session.exact
    assert session.times_s == (0, 1, 2, 3)
    once = model.answer(PICTURES[:MAX_FRAMES], QUESTION, TALKATIVE)
    assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


def test_reading_again_that_fails_leaves_no_frame(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the session goes on from there: it never says that it holds what it does not."""
    session = VideoSession(model, "drop-oldest")
    for number, picture in enumerate(PICTURES[:MAX_FRAMES]):
        session.append(picture, number)
    with monkeypatch.context() as patch:
        patch.setattr(model.engines.decoder, "run", None)
        with pytest.raises(TypeError):
            session.append(PICTURES[4], 4)
    assert (session.frames, session.exact) == (0, False)
    session.append(PICTURES[5], 5)
    once = model.answer(PICTURES[5:6], QUESTION, TALKATIVE)
    assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


def of_one_frame(model: VideoLanguageModel) -> VideoLanguageModel:
    profile = model.manifest.profile.model_copy(update={"max_frames": 1})
    small = reconfigured(model)
    small.manifest = model.manifest.model_copy(update={"profile": profile})
    return small


def test_a_session_of_one_frame(model: VideoLanguageModel) -> None:
    small = of_one_frame(model)
    with pytest.raises(UsageError, match="no other to let go of"):
        VideoSession(small, "stride")
    session = VideoSession(small, "drop-oldest")
    for number in range(3):
        session.append(PICTURES[number], number)
        assert session.times_s == (number,)
        once = small.answer(PICTURES[number : number + 1], QUESTION, TALKATIVE)
        assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


@pytest.mark.parametrize("wrong", ["drop_oldest", "", None, 3])
def test_what_is_no_choice(model: VideoLanguageModel, wrong: Any) -> None:
    with pytest.raises(UsageError, match="when_full is") as caught:
        VideoSession(model, wrong)
    assert "refuse, drop-oldest, stride" in str(caught.value.hint)


def test_features_are_held_only_where_they_are_read_again(model: VideoLanguageModel) -> None:
    choices: list[tuple[Any, int]] = [("refuse", 0), ("drop-oldest", 2), ("stride", 2)]
    for when_full, count in choices:
        session = VideoSession(model, when_full)
        for number in range(2):
            session.append(PICTURES[number], number)
        assert len(session._open()._features) == count
