# SPDX-License-Identifier: Apache-2.0
"""Several questions about one video: what is answered together is what is answered one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tc_export.errors import UsageError
from tc_export.native.find import find_native_library
from tc_export.runtime.answer import Answer, Finish, Transcript
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.prompt import Prompt
from tests.bundled import MAX_FRAMES
from tests.runtime.test_answering import CancelAfter, frames

QUESTIONS = [
    "What colour is the ball?",
    "Why?",
    "What happens first in it, and what happens last?",
    "What colour is the box?",
    "Why?",
]
TALKATIVE = GenerationConfig(max_new_tokens=24, temperature=3.0, seed=1)
SIZES = (1, 2, 3, 8)


@pytest.fixture(scope="module", params=[False, True], ids=["functions", "native"])
def opened(request: pytest.FixtureRequest, bundle: Path) -> VideoLanguageModel:
    """The small bundle, without our library and with it."""
    found = find_native_library() if request.param else None
    if request.param and (found is None or not found.has_onnxruntime_ops):
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    return VideoLanguageModel.open(bundle, native=request.param, threads=1)


@pytest.fixture
def model(opened: VideoLanguageModel) -> VideoLanguageModel:
    """The opened bundle, with no token that ends an answer."""
    opened.config = replace(opened.config, eos_token_ids=())
    return opened


def said(answer: Answer) -> tuple[str, Finish, int, int]:
    """All of an answer but its times."""
    return answer.text, answer.finish, answer.prompt_tokens, answer.new_tokens


def one_by_one(
    model: VideoLanguageModel, generation: GenerationConfig
) -> list[tuple[str, Finish, int, int]]:
    return [said(model.answer(frames(3), question, generation)) for question in QUESTIONS]


@pytest.mark.parametrize("batch_size", SIZES)
def test_questions_of_different_lengths(model: VideoLanguageModel, batch_size: int) -> None:
    alone = one_by_one(model, TALKATIVE)
    assert len({text for text, *_ in alone}) == 4, "they differ, but for the one asked twice"
    assert len({tokens for _, _, tokens, _ in alone}) > 2
    together = model.answer_many(frames(3), QUESTIONS, TALKATIVE, batch_size=batch_size)
    assert [said(answer) for answer in together] == alone
    for answer in together:
        assert answer.time_to_first_token_s is not None
        assert answer.decode_tokens_per_s is not None


def tokens_of(model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each question's answer."""
    heard: list[int] = []
    with monkeypatch.context() as patch:
        push = Transcript.push

        def hear(transcript: Transcript, token: int) -> str:
            heard.append(token)
            return push(transcript, token)

        patch.setattr(Transcript, "push", hear)
        one_by_one(model, TALKATIVE)
    count = TALKATIVE.max_new_tokens
    return [heard[start : start + count] for start in range(0, len(heard), count)]


@pytest.fixture
def ending(model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VideoLanguageModel:
    """With two end tokens that end the answers at as many different steps as can be."""
    answers = tokens_of(model, monkeypatch)

    def lengths(ends: tuple[int, ...]) -> set[int | None]:
        places = [[i for i, token in enumerate(each) if token in ends] for each in answers]
        return {min(each) if each else None for each in places}

    def worth(ends: tuple[int, ...]) -> tuple[bool, int]:
        return None in lengths(ends), len(lengths(ends))

    ends = max(combinations({token for each in answers for token in each}, 2), key=worth)
    model.config = replace(model.config, eos_token_ids=ends)
    return model


@pytest.mark.parametrize("batch_size", SIZES)
def test_answers_that_end_at_different_steps(ending: VideoLanguageModel, batch_size: int) -> None:
    alone = one_by_one(ending, TALKATIVE)
    assert {finish for _, finish, _, _ in alone} == {Finish.END, Finish.LENGTH}
    assert len({count for *_, count in alone}) >= 3
    pieces = [""] * len(QUESTIONS)

    def hear(question: int, text: str) -> None:
        assert text
        pieces[question] += text

    together = ending.answer_many(frames(3), QUESTIONS, TALKATIVE, hear, batch_size=batch_size)
    assert [said(answer) for answer in together] == alone
    assert pieces == [text for text, *_ in alone]


def test_an_answer_of_no_tokens_beside_others(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tokens_of(model, monkeypatch)
    model.config = replace(model.config, eos_token_ids=(answers[1][0],))
    alone = one_by_one(model, TALKATIVE)
    assert alone[1][:2] == ("", Finish.END)
    together = model.answer_many(frames(3), QUESTIONS, TALKATIVE)
    assert [said(answer) for answer in together] == alone
    assert together[1].time_to_first_token_s is not None
    assert together[1].decode_tokens_per_s is None


class Calls:
    """Counts the calls of both engines, and the sequences and tokens of each call."""

    def __init__(self, model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames: list[int] = []
        self.tokens: list[tuple[int, ...]] = []
        engines = model.engines
        monkeypatch.setattr(engines.vision, "run", self._watch(engines.vision.run))
        monkeypatch.setattr(engines.decoder, "run", self._decode(engines.decoder.run))

    def _watch(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(feeds: Any) -> Any:
            self.frames.append(len(feeds["pixel_values"]))
            return run(feeds)

        return counted

    def _decode(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(feeds: Any, cache: Any) -> Any:
            self.tokens.append(feeds["position_ids"].shape)
            return run(feeds, cache)

        return counted


def test_it_is_watched_once_and_the_beginning_is_read_once(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(model, monkeypatch)
    seen: list[tuple[str, int, int]] = []
    short = GenerationConfig(max_new_tokens=4)
    model.answer_many(frames(3), QUESTIONS, short, on_progress=lambda *step: seen.append(step))
    assert calls.frames == [3]
    (one, shared), (five, longest), *steps = calls.tokens
    assert (one, five) == (1, 5)
    assert steps == [(5, 1)] * 3
    lengths = [model.prompt(question, 3, 4).length for question in QUESTIONS]
    visual = 3 * model.config.model.tokens_per_frame
    assert shared > visual
    assert shared + longest == max(lengths)
    total = shared + sum(length - shared for length in lengths)
    assert sum(done for phase, done, _ in seen if phase == "tokens") == total
    assert {total for phase, _, total in seen if phase == "tokens"} == {total}


def test_batches_are_as_full_as_each_other(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(model, monkeypatch)
    model.answer_many(frames(1), QUESTIONS, GenerationConfig(max_new_tokens=2), batch_size=4)
    assert [count for count, _ in calls.tokens] == [1, 3, 3, 3, 3], "5 are 3 and 2, not 4 and 1"


def test_an_engine_of_one_sequence_is_asked_one_after_another(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT's are built; the frames are still watched and read once."""
    alone = one_by_one(model, TALKATIVE)
    decoder = model.engines.decoder
    info = decoder.inputs["inputs_embeds"]
    fixed = replace(info, shape=(1, *info.shape[1:]))
    monkeypatch.setattr(decoder, "inputs", {**decoder.inputs, "inputs_embeds": fixed})
    calls = Calls(model, monkeypatch)
    assert [said(answer) for answer in model.answer_many(frames(3), QUESTIONS, TALKATIVE)] == alone
    assert calls.frames == [3]
    assert {count for count, _ in calls.tokens} == {1}
    assert len(calls.tokens) == 1 + len(QUESTIONS) * TALKATIVE.max_new_tokens


def test_a_template_with_the_question_before_the_clip(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the watching can be shared then, and the answers are the same."""
    build = model.prompts.build

    def turned(question: str, clips: Any) -> Prompt:
        before, clip, after = build(question, clips).pieces
        return Prompt(pieces=(after, clip, before))

    monkeypatch.setattr(model.prompts, "build", turned)
    alone = one_by_one(model, TALKATIVE)
    calls = Calls(model, monkeypatch)
    assert [said(answer) for answer in model.answer_many(frames(3), QUESTIONS, TALKATIVE)] == alone
    assert calls.frames == [3]


def test_one_question_is_answered_as_by_answer(model: VideoLanguageModel) -> None:
    (answer,) = model.answer_many(frames(2), QUESTIONS[:1], TALKATIVE)
    assert said(answer) == said(model.answer(frames(2), QUESTIONS[0], TALKATIVE))


def test_no_question_is_no_work(model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(model, monkeypatch)
    assert model.answer_many(frames(2), []) == []
    assert calls.frames == []


def test_cancelling_in_the_middle_ends_those_that_have_not_ended(
    ending: VideoLanguageModel,
) -> None:
    whole = ending.answer_many(frames(3), QUESTIONS, TALKATIVE)
    mixed = False
    for calls in range(TALKATIVE.max_new_tokens):
        pieces = [""] * len(QUESTIONS)

        def hear(question: int, text: str, pieces: list[str] = pieces) -> None:
            pieces[question] += text

        answers = ending.answer_many(
            frames(3), QUESTIONS, TALKATIVE, hear, cancel=CancelAfter(calls)
        )
        mixed |= {answer.finish for answer in answers} == {Finish.END, Finish.CANCELLED}
        for answer, full, heard in zip(answers, whole, pieces, strict=True):
            assert answer.text == heard
            if answer.finish is Finish.CANCELLED:
                assert answer.new_tokens <= full.new_tokens
                assert full.text.startswith(answer.text.rstrip("\ufffd"))
            else:
                assert said(answer) == said(full)
    assert mixed


def test_an_event_of_another_thread_cancels(model: VideoLanguageModel) -> None:
    event = threading.Event()
    answers = model.answer_many(
        frames(3), QUESTIONS, TALKATIVE, lambda *_: event.set(), cancel=event.is_set
    )
    assert {answer.finish for answer in answers} == {Finish.CANCELLED}
    assert sum(answer.new_tokens for answer in answers) > 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_cancelling_is_asked_between_all_calls_of_an_engine(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    calls = Calls(model, monkeypatch)
    short = GenerationConfig(max_new_tokens=3)

    def ask(allowed: int) -> tuple[list[Answer], int]:
        calls.frames.clear()
        calls.tokens.clear()
        answers = model.answer_many(
            frames(2), QUESTIONS, short, batch_size=batch_size, cancel=CancelAfter(allowed)
        )
        return answers, len(calls.frames) + len(calls.tokens)

    whole, made = ask(10**6)
    assert {answer.finish for answer in whole} == {Finish.LENGTH}
    earlier = -1
    for allowed in range(made):
        answers, some = ask(allowed)
        assert len(answers) == len(QUESTIONS)
        assert earlier <= some <= earlier + 1, "never two calls without asking"
        earlier = some
        assert some < made
        for answer, full in zip(answers, whole, strict=True):
            assert answer.finish in (Finish.CANCELLED, Finish.LENGTH)
            assert full.text.startswith(answer.text)


def test_a_question_that_does_not_fit_is_named(model: VideoLanguageModel) -> None:
    for wrong, why in (("why " * 500, "the context holds 120"), (" ", "empty")):
        with pytest.raises(UsageError, match=f"question 2 of 3: .*{why}") as caught:
            model.answer_many(frames(1), ["Why?", wrong, "What?"], TALKATIVE)
        assert caught.value.hint


def test_what_else_is_refused(model: VideoLanguageModel) -> None:
    with pytest.raises(UsageError, match=f"^{MAX_FRAMES + 1} frames were sampled"):
        model.answer_many(frames(MAX_FRAMES + 1), QUESTIONS)
    with pytest.raises(UsageError, match=r"^there is no frame"):
        model.answer_many([], QUESTIONS)
    with pytest.raises(UsageError, match="1 question or more, not 0"):
        model.answer_many(frames(1), QUESTIONS, batch_size=0)
