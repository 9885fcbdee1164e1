# SPDX-License-Identifier: Apache-2.0
"""What a session refuses, in words, and that it is afterwards what it was before."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tc_export.errors import UsageError, VideoError
from tc_export.runtime.answer import AnswerStream
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.prompt import Prompt
from tc_export.runtime.session.video_session import VideoSession
from tests.bundled import MAX_FRAMES, MAX_LENGTH
from tests.runtime.session.conftest import reconfigured
from tests.runtime.session.test_video_session import (
    PICTURES,
    QUESTION,
    TALKATIVE,
    said,
    watching,
)


@pytest.fixture(scope="module")
def native() -> bool:
    """What is refused does not depend on the library."""
    return False


@pytest.fixture
def session(model: VideoLanguageModel) -> Iterator[VideoSession]:
    """Two frames, at 0 and 0.5 s; at the end it has to be as if nothing had been tried on it."""
    session, quiet = watching(model, 2), watching(model, 2)
    yield session
    assert (session.frames, session.rows) == (2, quiet.rows)
    for each in (session, quiet):
        each.append(PICTURES[2], 1)
    assert said(session.answer(QUESTION, TALKATIVE)) == said(quiet.answer(QUESTION, TALKATIVE))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((41, 56, 3), np.uint8), "this one has 56 x 41, those before have 56 x 40"),
        (np.zeros((56, 40, 3), np.uint8), "change their size"),
        (np.zeros((40, 56, 4), np.uint8), r"\[40, 56, 4\] of uint8, and not one"),
        (np.zeros((40, 56), np.uint8), "and not one"),
        (np.zeros((3, 40, 56), np.uint8), "and not one"),
        (np.zeros((1, 40, 56, 3), np.uint8), "and not one"),
        (np.zeros((0, 56, 3), np.uint8), "and not one"),
        (np.zeros((40, 56, 3), np.float32), "of float32, and not one"),
        (np.zeros((40, 56, 3), object), "of object"),
        ([[[0, 0, 0]]], "a list, and not an array"),
        (None, "a NoneType, and not an array"),
        (b"\xff\xd8\xff", "a bytes, and not an array"),
    ],
)
def test_what_is_no_frame_of_this_video(session: VideoSession, picture: Any, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        session.append(picture, 1)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("timestamp", "words"),
    [
        (0.5, "of 0.5 s came after one of 0.5 s"),
        (0.4, "time goes forward"),
        (-1, "time goes forward"),
        (math.nan, "timestamp is nan"),
        (math.inf, "timestamp is inf"),
        (10**400, "timestamp is inf"),
        (None, "is a NoneType"),
        ("1", "is a str"),
        (1j, "is a complex"),
        (Decimal("nan"), "is a Decimal"),
    ],
)
def test_what_is_no_later_time(session: VideoSession, timestamp: Any, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        session.append(PICTURES[2], timestamp)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("why " * 500, f"the context holds {MAX_LENGTH}"),
        ("x" * 2_000_000, "2000000 characters"),
        (" \n", "empty"),
    ],
)
def test_a_question_that_cannot_be_asked(session: VideoSession, question: str, words: str) -> None:
    for act in (session.ask, session.answer, lambda asked: session.answer_many([asked])):
        with pytest.raises(UsageError, match=f"^(?!question).*{words}") as caught:
            act(question)
        assert caught.value.hint
    with pytest.raises(UsageError, match=f"question 2 of 3: .*{words}"):
        session.answer_many([QUESTION, question, QUESTION], TALKATIVE)


def test_the_room_is_used_to_the_last_row_and_no_further(session: VideoSession) -> None:
    room = MAX_LENGTH - (session.rows + len(_text(session)))
    longest = GenerationConfig(max_new_tokens=room)
    assert session.answer(QUESTION, longest).new_tokens == room
    with pytest.raises(UsageError, match=f"{MAX_LENGTH + 1} in all, and the context holds"):
        session.answer(QUESTION, GenerationConfig(max_new_tokens=room + 1))


def _text(session: VideoSession) -> tuple[int, ...]:
    return session._model.prompt(QUESTION, 2, 1).around_clip()[1]


def test_other_wrong_calls(session: VideoSession) -> None:
    with pytest.raises(UsageError, match="1 question or more, not 0"):
        session.answer_many([QUESTION], batch_size=0)


def test_no_frame_at_all(model: VideoLanguageModel) -> None:
    with VideoSession(model) as session:
        for act in (session.ask, session.answer, lambda asked: session.answer_many([asked])):
            with pytest.raises(UsageError, match="no frame to look at"):
                act(QUESTION)
        with pytest.raises(VideoError, match="and not one"):
            session.append(np.zeros((2, 2), np.uint8), 0)
        # The first frame decides the size, once it is one.
        session.append(PICTURES[0], -7.5)
        assert session.times_s == (-7.5,)
        once = model.answer(PICTURES[:1], QUESTION, TALKATIVE)
        assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


def test_a_full_session_refuses_and_still_answers(model: VideoLanguageModel) -> None:
    session = watching(model, MAX_FRAMES)
    for _ in range(2):
        with pytest.raises(UsageError, match=f"full: it holds {MAX_FRAMES} frames") as caught:
            session.append(PICTURES[0], 100)
        assert "--max-frames" in str(caught.value.hint)
    once = model.answer(PICTURES, QUESTION, TALKATIVE)
    assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


def test_the_capacity_is_what_has_room(model: VideoLanguageModel) -> None:
    """Where the cache is shorter than the frames that are allowed."""
    per_frame = model.config.model.tokens_per_frame
    head = VideoSession(model).rows
    short = reconfigured(model)
    profile = model.manifest.profile.model_copy(update={"max_length": head + 3 * per_frame - 1})
    short.manifest = model.manifest.model_copy(update={"profile": profile})
    session = watching(short, 2)
    assert session.capacity == 2
    with pytest.raises(UsageError, match="full: it holds 2"):
        session.append(PICTURES[2], 5)
    with pytest.raises(UsageError, match="the context holds"):
        session.answer(QUESTION)


def test_a_full_session_of_which_nothing_can_be_asked(model: VideoLanguageModel) -> None:
    none = reconfigured(model)
    profile = model.manifest.profile.model_copy(update={"max_length": 4})
    none.manifest = model.manifest.model_copy(update={"profile": profile})
    with pytest.raises(UsageError, match="no room for a frame"):
        VideoSession(none)


def test_after_close(model: VideoLanguageModel) -> None:
    session = watching(model, 2)
    stream = session.ask(QUESTION, TALKATIVE)
    next(stream)
    unread = watching(model, 1)
    waiting = unread.ask(QUESTION, TALKATIVE)
    for each in (session, unread):
        each.close()
        each.close()
    acts = [
        lambda: session.append(PICTURES[2], 3),
        lambda: next(stream),
        lambda: next(waiting),
        lambda: session.ask(QUESTION),
        lambda: session.answer_many([QUESTION]),
        lambda: session.frames,
        lambda: session.rows,
        lambda: session.times_s,
        session.__enter__,
    ]
    for act in acts:
        with pytest.raises(UsageError, match="was closed"):
            act()


def test_closing_frees_the_cache(model: VideoLanguageModel) -> None:
    session = watching(model, 1)
    cache = weakref.ref(session._open().sequence.cache)
    session.answer(QUESTION, TALKATIVE)
    session.close()
    gc.collect()
    assert cache() is None


def test_an_answer_has_the_session_until_it_has_ended(session: VideoSession) -> None:
    stream = session.ask(QUESTION, TALKATIVE)
    for _ in range(2):
        for act in (
            lambda: session.append(PICTURES[2], 3),
            lambda: session.ask("Why?"),
            lambda: session.answer_many(["Why?", "What?"]),
        ):
            with pytest.raises(UsageError, match="busy: an answer has not been read") as caught:
                act()
            assert "close it" in str(caught.value.hint)
        next(stream)
    text = "".join(stream)
    assert stream.answer.text.endswith(text)


def test_an_answer_that_is_left_gives_the_session_back(session: VideoSession) -> None:
    stream = session.ask(QUESTION, TALKATIVE)
    next(stream)
    stream.close()
    for _ in session.ask(QUESTION, TALKATIVE):
        break
    session.ask(QUESTION, TALKATIVE)  # never read


def test_a_listener_that_fails_gives_the_session_back(session: VideoSession) -> None:
    def fail(*heard: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as kept:
        session.answer(QUESTION, TALKATIVE, fail)
    with pytest.raises(ZeroDivisionError) as kept_too:
        session.answer_many([QUESTION, QUESTION], TALKATIVE, fail)
    assert session.answer(QUESTION, TALKATIVE).text
    assert kept.traceback
    assert kept_too.traceback, "what is in their frames is alive"
    with pytest.raises(UsageError, match="busy"):
        session.answer(QUESTION, TALKATIVE, lambda text: session.append(PICTURES[2], 3))


class Gate:
    """An engine's `run` that waits in the middle of a call until it is let through."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(60)
        return self._run(*args)


@pytest.mark.parametrize("act", ["append", "answer"])
def test_two_threads(
    session: VideoSession,
    model: VideoLanguageModel,
    act: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = watching(model, 2)
    gate = Gate(model.engines.decoder.run)
    run = {
        "append": lambda: other.append(PICTURES[2], 3),
        "answer": lambda: other.answer(QUESTION, TALKATIVE),
    }
    with monkeypatch.context() as patch:
        patch.setattr(model.engines.decoder, "run", gate)
        thread = threading.Thread(target=run[act])
        thread.start()
        assert gate.reached.wait(60)
        for again in run.values():
            with pytest.raises(UsageError, match="busy: "):
                again()
        gate.opened.set()
        thread.join()
    assert other.frames == (3 if act == "append" else 2)
    once = model.answer(PICTURES[: other.frames], QUESTION, TALKATIVE)
    assert said(other.answer(QUESTION, TALKATIVE)) == said(once)


def test_one_answer_read_by_two_threads(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream: AnswerStream = watching(model, 1).ask(QUESTION, TALKATIVE)
    gate = Gate(model.engines.decoder.run)
    heard: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(model.engines.decoder, "run", gate)
        thread = threading.Thread(target=lambda: heard.append(next(stream)))
        thread.start()
        assert gate.reached.wait(60)
        for act in (stream.close, lambda: next(stream)):
            with pytest.raises(UsageError, match="read by another thread"):
                act()
        gate.opened.set()
        thread.join()
    heard += list(stream)
    assert stream.answer.text == "".join(heard)


def test_a_frame_whose_reading_fails_was_never_there(
    session: VideoSession, model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (model.engines.vision, model.engines.decoder):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "run", None)
            with pytest.raises(TypeError):
                session.append(PICTURES[3], 9)
            if engine is model.engines.decoder:
                with pytest.raises(TypeError):
                    session.answer(QUESTION, TALKATIVE)


def turned(prompt: Prompt) -> Prompt:
    before, clip, after = prompt.pieces
    return replace(prompt, pieces=(after, clip, before))


def test_a_template_with_the_question_before_the_clip(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = model.prompts.build
    monkeypatch.setattr(model.prompts, "build", lambda *asked: turned(build(*asked)))
    with pytest.raises(UsageError, match="question before the video") as caught:
        VideoSession(model)
    assert "answer_many" in str(caught.value.hint)


def test_a_template_that_turns_later(
    session: VideoSession, model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = model.prompts.build
    with monkeypatch.context() as patch:
        patch.setattr(model.prompts, "build", lambda *asked: turned(build(*asked)))
        with pytest.raises(UsageError, match="changes what is before the video"):
            session.ask(QUESTION, TALKATIVE)
