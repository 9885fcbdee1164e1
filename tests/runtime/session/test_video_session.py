# SPDX-License-Identifier: Apache-2.0
"""A session answers, after every frame, what is answered of those frames at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tc_export.engine.kv_cache import KvCache
from tc_export.engine.session import position_feeds
from tc_export.errors import UsageError
from tc_export.model.positions import lay_out
from tc_export.runtime.answer import Answer, Finish
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.session.video_session import VideoSession
from tests.bundled import MAX_FRAMES
from tests.runtime.session.conftest import reconfigured
from tests.runtime.test_answering import CancelAfter, frames
from tests.runtime.test_answering_many import Calls

QUESTION = "What colour is the ball?"
QUESTIONS = [QUESTION, "Why?", "What happens first in it, and what happens last?", "Why?"]
TALKATIVE = GenerationConfig(max_new_tokens=16, temperature=3.0, seed=1)
ONE_TOKEN = GenerationConfig(max_new_tokens=1)
PICTURES = frames(MAX_FRAMES)
SETTINGS = [
    {"mask": mask, "after_clip": after_clip}
    for mask in ("frame_block_causal", "causal")
    for after_clip in ("restart", "share")
]


def said(answer: Answer) -> tuple[str, Finish, int, int]:
    """All of an answer but its times."""
    return answer.text, answer.finish, answer.prompt_tokens, answer.new_tokens


def watching(model: VideoLanguageModel, count: int) -> VideoSession:
    """A session that has seen so many pictures."""
    session = VideoSession(model)
    for index in range(count):
        session.append(PICTURES[index], index / 2)
    return session


def last_logits(model: VideoLanguageModel, act: Callable[[], object]) -> np.ndarray:
    """The logits [V] of the decoder's last call in `act`."""
    found: list[np.ndarray] = []
    run = model.engines.decoder.run

    def recorded(feeds: Any, cache: Any) -> Any:
        outputs = run(feeds, cache)
        found.append(outputs["logits"][0, -1])
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engines.decoder, "run", recorded)
        act()
    return found[-1]


def by_the_cuts(model: VideoLanguageModel, count: int) -> np.ndarray:
    """The logits where the prompt is laid out at once, and the engine called as a session does."""
    prompt = model.prompt(QUESTION, count, 1)
    layout, _ = lay_out(prompt.segments, model.config.model.temporal)
    embeds_SE = model.embed(prompt, model.watch(PICTURES[:count]))
    head = len(prompt.around_clip()[0])
    per_frame = model.config.model.tokens_per_frame
    cuts = [0, *(head + per_frame * index for index in range(count + 1)), layout.length]
    cache = model.session().cache
    key_frame_ids = np.full((1, cache.rows), -1)
    for start, stop in pairwise(cuts):
        some = layout.tokens(start, stop)
        key_frame_ids[0, start:stop] = some.frame_ids
        feeds = {"inputs_embeds": embeds_SE[None, start:stop]}
        feeds |= {"logits_indices": np.array([[stop - start - 1]])} | position_feeds(some.batched())
        if "key_frame_ids" in model.engines.decoder.inputs:
            feeds["key_frame_ids"] = key_frame_ids
        logits = model.engines.decoder.run(feeds, cache)["logits"]
    found: np.ndarray = logits[0, -1]
    return found


def check_every_cut(model: VideoLanguageModel) -> None:
    """Bit for bit where the engine is called with the same rows; else up to rounding.

    Read at once, a row is one of many: a kernel may add the same products in another order.
    """
    with VideoSession(model) as session:
        for count in range(1, MAX_FRAMES + 1):
            seen = PICTURES[:count]
            session.append(seen[-1], float(count))
            found = last_logits(model, lambda: session.answer(QUESTION, ONE_TOKEN))
            np.testing.assert_array_equal(found, by_the_cuts(model, count))
            once = last_logits(model, partial(model.answer, seen, QUESTION, ONE_TOKEN))
            np.testing.assert_allclose(found, once, rtol=0, atol=2e-5 * np.abs(once).max())
            answer = model.answer(seen, QUESTION, TALKATIVE)
            assert answer.text
            assert said(session.answer(QUESTION, TALKATIVE)) == said(answer)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_every_cut_is_one_shot(opened: VideoLanguageModel, settings: dict[str, str]) -> None:
    check_every_cut(reconfigured(opened, **settings))


def test_every_cut_is_one_shot_for_frame_block(native: bool, ablation: Path) -> None:
    """The mask with a graph of its own."""
    check_every_cut(reconfigured(VideoLanguageModel.open(ablation, native=native, threads=1)))


def test_a_mask_that_looks_ahead_is_refused(opened: VideoLanguageModel) -> None:
    with pytest.raises(UsageError, match="full_visual lets a frame see later frames") as caught:
        VideoSession(reconfigured(opened, mask="full_visual"))
    assert "answer_many" in str(caught.value.hint)


def test_what_is_asked_leaves_no_trace(model: VideoLanguageModel) -> None:
    """However often, in between, to the end or not: the cache of the stream is bit for bit."""
    quiet, asked = VideoSession(model), VideoSession(model)
    short = GenerationConfig(max_new_tokens=5)
    for index, picture in enumerate(PICTURES):
        quiet.append(picture, index)
        asked.append(picture, index)
        first = said(asked.answer(QUESTION, TALKATIVE))
        asked.answer_many(QUESTIONS, short)
        asked.answer_many(QUESTIONS, short, batch_size=1)
        next(asked.ask("Why, and what for?", TALKATIVE))
        assert said(asked.answer(QUESTION, TALKATIVE)) == first
        assert asked.rows == quiet.rows
        held = [each._open().sequence.cache for each in (quiet, asked)]
        for name, buffer in held[0].buffers.items():
            rows = slice(0, quiet.rows)
            np.testing.assert_array_equal(
                held[1].buffers[name].numpy()[:, :, rows], buffer.numpy()[:, :, rows]
            )


def test_an_answer_copies_nothing_of_the_past(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = watching(model, 3)
    together = [said(answer) for answer in session.answer_many(QUESTIONS, TALKATIVE)]
    for name in ("fork", "repeat"):
        monkeypatch.setattr(KvCache, name, None)
    monkeypatch.setattr(model.engines.decoder, "allocate", None)
    assert [said(session.answer(each, TALKATIVE)) for each in QUESTIONS] == together
    alone = session.answer_many(QUESTIONS, TALKATIVE, batch_size=1)
    assert [said(answer) for answer in alone] == together


def test_a_frame_is_read_once_and_a_question_alone(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(model, monkeypatch)
    session = watching(model, 3)
    per_frame = model.config.model.tokens_per_frame
    (_, head), *each = calls.tokens
    assert calls.frames == [1, 1, 1]
    assert each == [(1, per_frame)] * 3
    assert session.rows == head + 3 * per_frame
    calls.tokens.clear()
    session.answer(QUESTION, GenerationConfig(max_new_tokens=3))
    question = model.prompt(QUESTION, 3, 3).length - session.rows
    assert calls.tokens == [(1, question), (1, 1), (1, 1)]
    calls.tokens.clear()
    session.answer_many(QUESTIONS, GenerationConfig(max_new_tokens=2))
    assert [batch for batch, _ in calls.tokens] == [4, 4]
    assert calls.frames == [1, 1, 1]


def test_several_questions_are_answered_as_each_alone(model: VideoLanguageModel) -> None:
    session = watching(model, MAX_FRAMES)
    once = [said(model.answer(PICTURES, question, TALKATIVE)) for question in QUESTIONS]
    assert len({text for text, *_ in once}) == 3
    for batch_size in (1, 2, 3, 8):
        pieces = [""] * len(QUESTIONS)

        def hear(question: int, text: str, pieces: list[str] = pieces) -> None:
            pieces[question] += text

        answers = session.answer_many(QUESTIONS, TALKATIVE, hear, batch_size=batch_size)
        assert [said(answer) for answer in answers] == once
        assert pieces == [text for text, *_ in once]
    assert session.answer_many([]) == []


def test_an_engine_of_one_sequence(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT's are built."""
    session = watching(model, 2)
    together = [said(answer) for answer in session.answer_many(QUESTIONS, TALKATIVE)]
    decoder = model.engines.decoder
    info = decoder.inputs["inputs_embeds"]
    fixed = replace(info, shape=(1, *info.shape[1:]))
    monkeypatch.setattr(decoder, "inputs", {**decoder.inputs, "inputs_embeds": fixed})
    monkeypatch.setattr(KvCache, "repeat", None)
    assert [said(each) for each in session.answer_many(QUESTIONS, TALKATIVE)] == together


def test_many_sessions_of_one_model(model: VideoLanguageModel) -> None:
    """Turn about, each sees its own pictures, and answers while others do."""
    others = frames(MAX_FRAMES, seed=5)
    with VideoSession(model) as first, VideoSession(model) as second:
        for index in range(MAX_FRAMES):
            first.append(PICTURES[index], index)
            second.append(others[index], index)
        streams = [session.ask(QUESTION, TALKATIVE) for session in (first, second)]
        texts = ["", ""]
        for pieces in zip_longest(*streams, fillvalue=""):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        expected = [model.answer(seen, QUESTION, TALKATIVE).text for seen in (PICTURES, others)]
        assert texts == [stream.answer.text for stream in streams] == expected
        assert expected[0] != expected[1]


def test_what_a_session_says_of_itself(model: VideoLanguageModel) -> None:
    with VideoSession(model) as session:
        head = session.rows
        assert (session.frames, session.times_s) == (0, ())
        assert session.capacity == MAX_FRAMES
        for index, picture in enumerate(PICTURES):
            session.append(picture, index + 0.5)
        assert session.frames == MAX_FRAMES
        assert session.times_s == (0.5, 1.5, 2.5, 3.5)
        assert session.rows == head + MAX_FRAMES * model.config.model.tokens_per_frame
        text = model.prompt(QUESTION, MAX_FRAMES, 1).around_clip()
        assert head == len(text[0]) > 0


def test_a_prompt_that_begins_with_the_video(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = model.prompts.build
    monkeypatch.setattr(
        model.prompts, "build", lambda question, clips: _without_head(build(question, clips))
    )
    session = watching(model, 2)
    assert session.rows == 2 * model.config.model.tokens_per_frame
    once = model.answer(PICTURES[:2], QUESTION, TALKATIVE)
    assert said(session.answer(QUESTION, TALKATIVE)) == said(once)


def _without_head(prompt: Any) -> Any:
    return replace(prompt, pieces=prompt.pieces[1:])


def test_the_pieces_are_the_answer_and_come_one_by_one(model: VideoLanguageModel) -> None:
    session = watching(model, 2)
    whole = session.answer(QUESTION, TALKATIVE)
    stream = session.ask(QUESTION, TALKATIVE)
    first = next(stream)
    with pytest.raises(UsageError, match="has not ended"):
        _ = stream.answer
    assert first + "".join(stream) == stream.answer.text == whole.text
    assert stream.answer.time_to_first_token_s is not None


def test_cancelling(model: VideoLanguageModel) -> None:
    session = watching(model, 2)
    whole = session.answer(QUESTION, TALKATIVE)
    for calls in range(TALKATIVE.max_new_tokens):
        answer = session.answer(QUESTION, TALKATIVE, cancel=CancelAfter(calls))
        assert answer.finish is Finish.CANCELLED
        assert whole.text.startswith(answer.text.rstrip("\ufffd"))
    assert said(session.answer(QUESTION, TALKATIVE)) == said(whole)
