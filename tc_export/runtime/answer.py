# SPDX-License-Identifier: Apache-2.0
"""What an answer is, and how it is put together from tokens, one after the other."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from inspect import GEN_RUNNING, getgeneratorstate

from tc_export.errors import UsageError
from tc_export.runtime.prompt import TextStream
from tc_export.runtime.tokenizer import Tokenizer
from tc_export.runtime.video import SampledVideo


class Finish(StrEnum):
    """Why an answer ended."""

    END = "end"
    """The model said its end token."""
    LENGTH = "length"
    """It reached `max_new_tokens`."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said, and how fast. Times are from the first frame's preprocessing on.

    Of a `VideoSession` they are from when the answer was begun to be read.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    """Tokens of the answer, without the end token."""
    time_to_first_token_s: float | None
    """Until the first token was known, be it the end token; None where it was cancelled before."""
    decode_tokens_per_s: float | None
    """Tokens after the first a second; None where there was no second token."""
    exact: bool = True
    """False where a `VideoSession` had let go of frames before it was asked."""


@dataclass(frozen=True, kw_only=True)
class VideoAnswer:
    """An answer about a video file, and what was seen of it."""

    answer: Answer
    frame_indices: tuple[int, ...]
    frame_times_s: tuple[float, ...]
    notes: tuple[str, ...]
    """Sentences about what was not as asked for: fewer frames, damage."""


class AnswerStream(Iterator[str]):
    """The pieces of an answer, as they are made; put together they are its text.

    Work is done only while the next piece is waited for. Leaving the stream ends it.
    """

    def __init__(self, pieces: Generator[tuple[int, str], None, list[Answer]]) -> None:
        """Run the generator of one answer."""
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        self._check_alone()
        try:
            return next(self._pieces)[1]
        except StopIteration as end:
            if end.value:
                (self._answer,) = end.value
            raise StopIteration from None

    def close(self) -> None:
        """End the answer here, and free its cache."""
        self._check_alone()
        self._pieces.close()

    def _check_alone(self) -> None:
        if getgeneratorstate(self._pieces) == GEN_RUNNING:
            raise UsageError(
                "the answer is being read by another thread", hint="read it from one at a time"
            )

    @property
    def answer(self) -> Answer:
        """The whole answer, with its figures.

        Raises:
            UsageError: the stream has not been read to its end.
        """
        if self._answer is None:
            raise UsageError("the answer has not ended yet", hint="read the stream to its end")
        return self._answer


def about(video: SampledVideo, answer: Answer, image_note: str | None) -> VideoAnswer:
    """Put an answer together with what was seen of the video.

    `image_note` is what the model's configuration says of images.
    """
    notes = (image_note,) if image_note and video.is_picture else ()
    return VideoAnswer(
        answer=answer,
        frame_indices=video.indices,
        frame_times_s=video.times_s,
        notes=video.notes + notes,
    )


class Transcript:
    """Puts an answer together while it is made, and takes its times, from now on."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: int) -> None:
        """Begin an answer to a prompt of so many tokens."""
        self._text = _SpokenText(TextStream(tokenizer))
        self._prompt_tokens = prompt_tokens
        self._start = time.perf_counter()
        self._times: list[float] = []
        self._answer: Answer | None = None

    @property
    def new_tokens(self) -> int:
        """How many tokens there are by now."""
        return len(self._times)

    @property
    def answer(self) -> Answer | None:
        """The whole answer once it has ended."""
        return self._answer

    def push(self, token: int) -> str:
        """Take the next token; return the text that can be said by it, often none."""
        self._times.append(time.perf_counter())
        return self._text.push(token)

    def end(self, finish: Finish) -> str:
        """End the answer; return the text that was still held back."""
        piece = self._text.finish()
        if finish is Finish.END and not self._times:
            first_s: float | None = time.perf_counter() - self._start
        else:
            first_s = self._times[0] - self._start if self._times else None
        seconds = self._times[-1] - self._times[0] if self._times else 0.0
        self._answer = Answer(
            text=self._text.whole,
            finish=finish,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self.new_tokens,
            time_to_first_token_s=first_s,
            decode_tokens_per_s=(self.new_tokens - 1) / seconds if seconds else None,
        )
        return piece


class _SpokenText:
    """The text of an answer, without the white space around it."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._space = ""  # held back until text follows it
        self.whole = ""

    def push(self, token: int) -> str:
        """Take the next token; return the text that can be said by it, often none."""
        return self._say(self._stream.push(token))

    def finish(self) -> str:
        """Return what was still held back."""
        return self._say(self._stream.finish())

    def _say(self, text: str) -> str:
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if not self.whole:
            said = said.lstrip()
        self.whole += said
        return said
