# SPDX-License-Identifier: Apache-2.0
"""An answer: whole, as it comes, and together with the video that it is about."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum

from tc_export.errors import UsageError
from tc_export.runtime.prompt import TextStream
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
    """What was said, and how fast. Times are from the first frame's preprocessing on."""

    text: str
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    """Tokens of the answer, without the end token."""
    time_to_first_token_s: float | None
    """Until the first token was known, be it the end token; None where it was cancelled before."""
    decode_tokens_per_s: float | None
    """Tokens after the first a second; None where there was no second token."""


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

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        """Run the generator, which returns the answer."""
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = self._answer or end.value
            raise StopIteration from None

    def close(self) -> None:
        """End the answer here, and free its cache."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The whole answer, with its figures.

        Raises:
            UsageError: the stream has not been read to its end.
        """
        if self._answer is None:
            raise UsageError("the answer has not ended yet", hint="read the stream to its end")
        return self._answer


class SpokenText:
    """The text of an answer, without the white space around it."""

    def __init__(self, stream: TextStream) -> None:
        """Take the text of the tokens from `stream`."""
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


def about(video: SampledVideo, answer: Answer) -> VideoAnswer:
    """Put an answer together with what was seen of the video."""
    return VideoAnswer(
        answer=answer,
        frame_indices=video.indices,
        frame_times_s=video.times_s,
        notes=video.notes,
    )
