# SPDX-License-Identifier: Apache-2.0
"""An opened bundle answers as a loop by hand does: whole, in pieces, or several at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tc_export.bundle import EngineRecord, EngineState, read_manifest
from tc_export.engine.session import DecoderSession
from tc_export.errors import BundleError, UsageError, VideoError
from tc_export.runtime.answer import Answer, Finish
from tc_export.runtime.answering import VideoLanguageModel, open_engines
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.video import Rate, Uniform
from tests.bundled import MAX_FRAMES
from tests.runtime.clips import write_clip

QUESTION = "What colour is the ball?"
SHORT = GenerationConfig(max_new_tokens=12)
TALKATIVE = GenerationConfig(max_new_tokens=40, temperature=3.0, seed=1)
"""A model that was not trained says one thing over and over, unless it is made to vary."""


@pytest.fixture(scope="module")
def opened(bundle: Path) -> VideoLanguageModel:
    return VideoLanguageModel.open(bundle, threads=1)


@pytest.fixture
def model(opened: VideoLanguageModel) -> VideoLanguageModel:
    """The opened bundle, with no token that ends an answer."""
    opened.config = replace(opened.config, eos_token_ids=())
    return opened


def frames(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(count)]


def by_hand(model: VideoLanguageModel, bundle: Path, count: int, tokens: int) -> list[int]:
    """Greedy tokens, from the engines and the session alone."""
    pixels = preprocess(
        frames(count), read_preprocess_config(bundle, model.config.model.vision.image_size)
    )
    features = model.engines.vision.run({"pixel_values": pixels})["visual_features"]
    prompt = model.prompt(QUESTION, count, tokens)
    visual = -5
    ids = prompt.token_ids(visual)
    embeds = model._embedding(np.where(ids == visual, 0, ids))
    embeds[ids == visual] = features.reshape(-1, features.shape[-1])
    session = DecoderSession(model.engines.decoder, model.config.model, 120)
    logits = session.prefill(embeds, prompt.segments)
    said = [int(np.argmax(logits))]
    while len(said) < tokens:
        logits = session.step(model._embedding(np.array(said[-1:]))[0])
        said.append(int(np.argmax(logits)))
    return said


def text_of(model: VideoLanguageModel, tokens: list[int]) -> str:
    return model.prompts.tokenizer.decode(tokens).strip().rstrip("\ufffd")


@pytest.mark.parametrize("count", range(1, MAX_FRAMES + 1))
def test_an_answer_is_what_the_loop_by_hand_says(
    model: VideoLanguageModel, bundle: Path, count: int
) -> None:
    answer = model.answer(frames(count), QUESTION, SHORT)
    assert answer.text == text_of(model, by_hand(model, bundle, count, 12))
    assert answer.text or count > 2
    assert (answer.new_tokens, answer.finish) == (12, Finish.LENGTH)
    assert answer.prompt_tokens == model.prompt(QUESTION, count, 12).length
    assert answer.time_to_first_token_s is not None
    assert answer.time_to_first_token_s > 0
    assert answer.decode_tokens_per_s is not None


def test_an_end_token_ends_the_answer_and_is_not_said(
    model: VideoLanguageModel, bundle: Path
) -> None:
    tokens = by_hand(model, bundle, 2, 12)
    end = next(token for token in tokens if token != tokens[0])
    model.config = replace(model.config, eos_token_ids=(9999, end))
    answer = model.answer(frames(2), QUESTION, SHORT)
    assert answer.new_tokens == tokens.index(end) > 0
    assert answer.text == text_of(model, tokens[: answer.new_tokens])
    assert answer.finish is Finish.END


def test_an_answer_of_no_tokens(model: VideoLanguageModel, bundle: Path) -> None:
    model.config = replace(model.config, eos_token_ids=(by_hand(model, bundle, 2, 1)[0],))
    pieces: list[str] = []
    answer = model.answer(frames(2), QUESTION, SHORT, pieces.append)
    assert pieces == []
    assert (answer.text, answer.new_tokens, answer.finish) == ("", 0, Finish.END)
    assert answer.time_to_first_token_s is not None
    assert answer.decode_tokens_per_s is None


def test_an_answer_of_one_token(model: VideoLanguageModel) -> None:
    answer = model.answer(frames(2), QUESTION, GenerationConfig(max_new_tokens=1))
    assert (answer.new_tokens, answer.finish) == (1, Finish.LENGTH)
    assert answer.decode_tokens_per_s is None


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_the_pieces_are_the_text(model: VideoLanguageModel, temperature: float) -> None:
    for seed in range(5):
        generation = GenerationConfig(max_new_tokens=40, temperature=temperature, seed=seed)
        told: list[str] = []
        answer = model.answer(frames(2), QUESTION, generation, told.append)
        stream = model.stream(frames(2), QUESTION, generation)
        assert list(stream) == told
        assert stream.answer.text == answer.text == "".join(told) == answer.text.strip()
        assert all(told)
        assert stream.answer.new_tokens == answer.new_tokens == 40


def test_a_stream_works_while_it_is_read(model: VideoLanguageModel) -> None:
    seen: list[tuple[str, int, int]] = []
    stream = model.stream(frames(3), QUESTION, TALKATIVE, lambda *step: seen.append(step))
    assert seen == []
    next(stream)
    assert [step for step in seen if step[0] == "frames"] == [("frames", 0, 3), ("frames", 3, 3)]
    length = model.prompt(QUESTION, 3, 40).length
    assert sum(done for phase, done, _ in seen if phase == "tokens") == length
    assert {total for phase, _, total in seen if phase == "tokens"} == {length}
    with pytest.raises(UsageError, match="has not ended"):
        _ = stream.answer
    stream.close()
    assert list(stream) == []
    with pytest.raises(UsageError, match="has not ended"):
        _ = stream.answer


def test_two_questions_at_once_are_answered_as_each_alone(model: VideoLanguageModel) -> None:
    asked = [(frames(1, seed=1), "What is it?"), (frames(4, seed=2), "Which comes first? Why?")]
    alone = [model.answer(clip, question, SHORT).text for clip, question in asked]
    assert alone[0] != alone[1]
    streams = [model.stream(clip, question, SHORT) for clip, question in asked]
    told = ["", ""]
    for pieces in zip_longest(*streams, fillvalue=""):
        told = [text + piece for text, piece in zip(told, pieces, strict=True)]
    assert told == alone
    assert [stream.answer.text for stream in streams] == alone


class CancelAfter:
    """Says no so many times, and then yes."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_cancelling_between_tokens_keeps_what_was_said(model: VideoLanguageModel) -> None:
    event = threading.Event()
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            event.set()

    whole = model.answer(frames(2), QUESTION, TALKATIVE)
    answer = model.answer(frames(2), QUESTION, TALKATIVE, hear, cancel=event.is_set)
    assert (whole.finish, answer.finish) == (Finish.LENGTH, Finish.CANCELLED)
    assert 3 <= answer.new_tokens < 40
    assert answer.text == "".join(pieces)
    assert whole.text.startswith("".join(pieces[:3]))
    assert answer.text in whole.text
    assert answer.time_to_first_token_s is not None


def test_cancelling_is_asked_between_all_calls_of_an_engine(
    model: VideoLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it ends within one call: of 8 frames, of a chunk of the prompt, of a token."""
    calls: list[str] = []

    def count(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            calls.append(name)
            return run(*args)

        return counted

    for name, engine in (("vision", model.engines.vision), ("decoder", model.engines.decoder)):
        monkeypatch.setattr(engine, "run", count(name, engine.run))
    monkeypatch.setattr(model, "session", lambda: _chunked(model))
    whole = _answer_and_count(model, CancelAfter(10**6), calls)
    assert whole[0].finish is Finish.LENGTH
    expected = whole[1]
    # 3 frames of 4 tokens each, and text before and after: more than one chunk; then 11 steps.
    assert expected[0] == "vision"
    assert len(expected) > 1 + 11 + 2
    for allowed in range(len(expected)):
        answer, made = _answer_and_count(model, CancelAfter(allowed), calls)
        assert answer.finish is Finish.CANCELLED
        # It is asked once more where the prompt ends: before and after the first token is chosen.
        assert made == expected[: len(made)]
        assert len(made) == allowed - (answer.new_tokens > 0)
        assert (answer.new_tokens == 0) == (answer.time_to_first_token_s is None)


def _chunked(model: VideoLanguageModel) -> DecoderSession:
    return DecoderSession(model.engines.decoder, model.config.model, 120, chunk_tokens=4)


def _answer_and_count(
    model: VideoLanguageModel, cancel: CancelAfter, calls: list[str]
) -> tuple[Answer, list[str]]:
    calls.clear()
    return model.answer(frames(3), QUESTION, SHORT, cancel=cancel), list(calls)


@pytest.mark.parametrize(("count", "words"), [(0, "no frame"), (MAX_FRAMES + 1, "takes 4")])
def test_a_wrong_number_of_frames_is_refused(
    model: VideoLanguageModel, count: int, words: str
) -> None:
    for call in (
        lambda: model.answer(frames(count), QUESTION, SHORT),
        lambda: model.stream(frames(count), QUESTION, SHORT),
        lambda: model.watch(frames(count)),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_a_question_that_does_not_fit_is_refused_at_once(model: VideoLanguageModel) -> None:
    with pytest.raises(UsageError, match="the context holds 120"):
        model.stream(frames(1), "why " * 500)
    with pytest.raises(UsageError, match="2000000 characters"):
        model.stream(frames(1), "x" * 2_000_000)
    with pytest.raises(UsageError, match="empty"):
        model.stream(frames(1), " ")


def test_asking_about_a_file_is_answering_about_its_frames(
    model: VideoLanguageModel, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 12)
    told: list[str] = []
    result = model.ask(clip, QUESTION, generation=SHORT, on_text=told.append)
    assert result.frame_indices == (0, 3, 7, 11)
    assert result.answer.text == "".join(told)
    assert len(result.frame_times_s) == 4
    assert result.notes == ()
    assert model.ask(clip, QUESTION, Uniform(frames=2), SHORT).frame_indices == (0, 11)
    short = write_clip(tmp_path / "short.mp4", 2)
    assert "2: all are used" in model.ask(short, QUESTION, generation=SHORT).notes[0]
    with pytest.raises(VideoError):
        model.ask(clip, QUESTION, Rate(fps=25, max_frames=MAX_FRAMES))
    with pytest.raises(UsageError, match="takes 4"):
        model.ask(clip, QUESTION, Uniform(frames=9))
    cancelled = model.ask(clip, QUESTION, generation=SHORT, cancel=lambda: True)
    assert cancelled.answer.finish is Finish.CANCELLED
    assert cancelled.answer.text == ""


def test_a_pending_engine_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for engine, step in (
        (None, "build the bundle again"),
        (
            EngineRecord(backend="tensorrt", state=EngineState.PENDING, next_step="finish it"),
            "finish it",
        ),
    ):
        with pytest.raises(BundleError, match="not built yet") as caught:
            open_engines(bundle, manifest.model_copy(update={"engine": engine}))
        assert caught.value.hint == step


ANSWER_ALONE = """
import sys
import numpy as np
from pathlib import Path
from tc_export.runtime.answer import Answer, Finish
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.generation import GenerationConfig
model = VideoLanguageModel.open(Path(sys.argv[1]), threads=1)
short = GenerationConfig(max_new_tokens=4)
model.answer([np.zeros((40, 56, 3), np.uint8)], "What is it?", short)
assert model.ask(Path(sys.argv[2]), "What is it?", generation=short).answer.new_tokens
unwanted = "torch transformers onnx onnx_ir onnxscript polygraphy matplotlib safetensors rich typer"
print(sorted(set(unwanted.split()) & {name.split(".")[0] for name in sys.modules}))
"""


def test_answering_needs_nothing_of_what_builds(bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 4)
    done = subprocess.run(
        [sys.executable, "-c", ANSWER_ALONE, str(bundle), str(clip)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
