# SPDX-License-Identifier: Apache-2.0
"""A video that is still coming: watched frame by frame, and asked about at any moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from numbers import Real
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tc_export.errors import UsageError, VideoError
from tc_export.runtime.answer import Answer, AnswerStream
from tc_export.runtime.answering import VideoLanguageModel
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.prompt import Prompt
from tc_export.runtime.session.turn import Turn
from tc_export.runtime.session.watched import Watched
from tc_export.runtime.session.when_full import WhenFull, check_when_full, frames_that_stay
from tc_export.runtime.speaking import BATCH_SIZE, Cancel, check, check_batch_size, hear


class VideoSession:
    """A stream of frames in a cache of its own. An opened bundle serves any number of them.

        with VideoSession(model) as session:
            session.append(picture, 0.0)
            for piece in session.ask("What is happening?"):
                print(piece, end="")

    A frame is encoded and read when it is appended, and never again. A question is read behind the
    last frame and forgotten after its answer: nothing of the past is copied, and the stream goes
    on as if nobody had asked. What is answered is what `VideoLanguageModel.answer` says of the
    same frames, up to rounding (docs/streaming.md).

    One thing happens at a time: an append or a question while an answer has not been read to its
    end, or while another thread uses the session, is refused, and disturbs neither.
    """

    def __init__(self, model: VideoLanguageModel, when_full: WhenFull = "refuse") -> None:
        """Start watching nothing yet: reads what a prompt has before its video.

        Args:
            model: an opened bundle (`tc_export.open`).
            when_full: what becomes of a frame for which there is no room. `refuse`: it is an error.
                `drop-oldest`: the older half of the frames goes. `stride`: every other frame goes,
                and the first stays. Those that stay are read again, from their features.

        Raises:
            UsageError: the model's mask lets frames see later ones, its chat template places the
                question before the video, the bundle has no room for a frame, or there is no such
                `when_full`.
        """
        temporal = model.config.model.temporal
        if not temporal.mask.allows_frame_chunks:
            raise UsageError(
                f"the mask {temporal.mask} lets a frame see later frames, so none can be read "
                "before the last one is there",
                hint="use `answer` or `answer_many`, or a model with frame_block_causal",
            )
        self._model = model
        self._head = model.prompts.head()
        self._capacity = frames_that_fit(model, len(self._head))
        check_when_full(when_full, self._capacity)
        self._when_full = when_full
        head_SE = model.speaker().embedding(np.array(self._head, dtype=np.int64))
        self._watched: Watched | None = Watched(
            model.session(), head_SE, forgets=when_full != "refuse"
        )
        self._size: tuple[int, ...] | None = None
        self._turn = Turn()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and free its cache. An answer that is being read ends with an error."""
        self._watched = None

    @property
    def frames(self) -> int:
        """How many frames it holds."""
        return len(self._open().times_s)

    @property
    def times_s(self) -> tuple[float, ...]:
        """The timestamps of the frames that it holds."""
        return self._open().times_s

    @property
    def rows(self) -> int:
        """Rows of the cache that are in use: tokens of the frames, and of what is before them."""
        return self._open().sequence.length

    @property
    def capacity(self) -> int:
        """Most frames that it holds: those that the bundle was built for."""
        return self._capacity

    @property
    def exact(self) -> bool:
        """True while no frame was let go of: answers are then about all that was appended."""
        return not self._open().forgotten

    def append(self, picture: NDArray[np.uint8], timestamp: float) -> None:
        """Encode a frame, and read it into the cache. A call that is refused changes nothing.

        The call that makes room also reads half of the frames again.

        Args:
            picture: [H, W, 3], red first; all frames of a session have one size.
            timestamp: when it was taken, in seconds from any moment on; later than the last one.

        Raises:
            VideoError: it is no picture, of another size than those before, or not later.
            UsageError: the session is full and refuses more, busy or closed.
        """
        with self._used("a frame is being appended") as watched:
            check_picture(picture, self._size)
            time_s = check_time(timestamp, watched.times_s)
            kept = frames_that_stay(self._when_full, self._capacity)
            is_full = len(watched.times_s) == self._capacity
            if is_full and kept is None:
                raise UsageError(
                    f"the session is full: it holds {self._capacity} frames, all that the bundle "
                    "takes",
                    hint="choose another when_full, or build with a larger --max-frames",
                )
            (features_mE,) = self._model.watch([picture])
            if is_full and kept is not None:
                watched.keep(kept)
            watched.append(features_mE.astype(np.float32), time_s)
            self._size = picture.shape

    def ask(
        self,
        question: str,
        generation: GenerationConfig | None = None,
        *,
        cancel: Cancel = lambda: False,
    ) -> AnswerStream:
        """Answer a question about the frames so far; the text is pulled from the result.

        The session is the answer's until that has been read to its end, closed or dropped. The
        answer's times are from the first pull on.

        Args:
            question: text of the user.
            generation: how tokens are chosen; by default greedily, at most 128.
            cancel: ends the answer where it is; see `Cancel`.

        Raises:
            UsageError: no frames yet, a question that does not fit behind them, or the session is
                busy or closed; one that is closed while the answer is read.
        """
        pieces = self._pieces([question], generation or GenerationConfig(), 1, cancel)
        next(pieces)
        return AnswerStream(pieces)

    def answer(
        self,
        question: str,
        generation: GenerationConfig | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        *,
        cancel: Cancel = lambda: False,
    ) -> Answer:
        """Answer as `ask` does, to the end; `on_text` gets the answer piece by piece.

        Raises:
            UsageError: as for `ask`.
        """
        with closing(self.ask(question, generation, cancel=cancel)) as stream:
            for piece in stream:
                on_text(piece)
            return stream.answer

    def answer_many(
        self,
        questions: Sequence[str],
        generation: GenerationConfig | None = None,
        on_text: Callable[[int, str], None] = lambda question, text: None,
        *,
        batch_size: int = BATCH_SIZE,
        cancel: Cancel = lambda: False,
    ) -> list[Answer]:
        """Answer several questions about the frames so far, as one batch where the engine can.

        Each answer is the one that `answer` gives, up to rounding. In a batch each question has a
        copy of the cache while it is answered; with a `batch_size` of 1, and with engines that
        take one sequence (TensorRT), they go one after another and nothing is copied.

        Args:
            questions: in the order of the answers; none is no error.
            generation: how tokens are chosen, for every question.
            on_text: gets the number of a question, from 0 on, and the next piece of its answer.
            batch_size: most questions at once, 1 or more.
            cancel: ends the answers that have not ended by themselves, where they are.

        Raises:
            UsageError: as for `ask` (the message says of which question), or no batch.
        """
        check_batch_size(batch_size)
        if not questions:
            return []
        pieces = self._pieces(questions, generation or GenerationConfig(), batch_size, cancel)
        next(pieces)
        return hear(pieces, on_text)

    def _pieces(
        self,
        questions: Sequence[str],
        generation: GenerationConfig,
        batch_size: int,
        cancel: Cancel,
    ) -> Generator[tuple[int, str], None, list[Answer]]:
        """Take the session and check the questions; yield once; then go on as `Speaker.speak`."""
        with self._used("an answer has not been read to its end") as watched:
            frames, new_tokens = len(watched.times_s), generation.max_new_tokens
            prompts = self._model.each_prompt(questions, frames, new_tokens)
            texts = [self._after_the_video(prompt) for prompt in prompts]
            exact = self.exact
            yield 0, ""

            def ends() -> bool:
                self._open()
                return cancel()

            self._open()
            speaker = self._model.speaker()
            sequence = watched.sequence
            read = speaker.read_on(sequence, texts, batch_size, lambda tokens: check(ends))
            lengths = [prompt.length for prompt in prompts]
            answers = yield from speaker.speak(lengths, read, generation, ends)
            return [replace(answer, exact=exact) for answer in answers]

    def _after_the_video(self, prompt: Prompt) -> NDArray[np.int64]:
        """Token ids [S] behind the clip."""
        head, text = prompt.around_clip()
        if head != self._head:
            raise UsageError(
                "the chat template changes what is before the video by the question",
                hint="use `answer` or `answer_many` of the opened bundle",
            )
        return np.array(text, dtype=np.int64)

    @contextmanager
    def _used(self, what: str) -> Iterator[Watched]:
        """Have the session alone for the `with` block."""
        self._open()  # of a closed one nothing else is said
        with self._turn.take(what):
            yield self._open()

    def _open(self) -> Watched:
        if self._watched is None:
            raise UsageError("the session was closed", hint="start another one")
        return self._watched


def frames_that_fit(model: VideoLanguageModel, head_tokens: int) -> int:
    """Most frames behind the head of the prompt, within what the bundle was built for.

    Raises:
        UsageError: not one.
    """
    profile, tokens_per_frame = model.manifest.profile, model.config.model.tokens_per_frame
    room = (profile.max_length - head_tokens) // tokens_per_frame
    if room < 1:
        raise UsageError(
            f"the bundle holds {profile.max_length} tokens, no room for a frame of "
            f"{tokens_per_frame} behind {head_tokens} of text",
            hint="build with a larger --max-length",
        )
    return min(profile.max_frames, room)


def check_picture(picture: NDArray[np.uint8], size: tuple[int, ...] | None) -> None:
    """See that a frame is one, and of the shape of those before; None where there are none.

    Raises:
        VideoError: it is not.
    """
    if not isinstance(picture, np.ndarray):
        raise VideoError(
            f"a frame is a {type(picture).__name__}, and not an array [height, width, 3] of uint8",
            hint="numpy.asarray makes one of a Pillow image",
        )
    is_picture = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    if not is_picture or picture.size == 0:
        raise VideoError(
            f"a frame is an array {list(picture.shape)} of {picture.dtype}, and not one "
            "[height, width, 3] of uint8",
            hint="give the picture in full colour, red first, with values from 0 to 255",
        )
    if size is not None and picture.shape != size:
        found, before = (f"{shape[1]} x {shape[0]}" for shape in (picture.shape, size))
        raise VideoError(
            f"the frames change their size: this one has {found}, those before have {before}",
            hint="resize the frames, or start another session",
        )


def check_time(timestamp: object, times_s: Sequence[float]) -> float:
    """See that a frame's time is one, and after those before; return it in seconds.

    Raises:
        VideoError: it is not.
    """
    time_s = _seconds(timestamp)
    if not math.isfinite(time_s):
        found = time_s if isinstance(timestamp, Real) else f"a {type(timestamp).__name__}"
        raise VideoError(
            f"a frame's timestamp is {found}, and not a number of seconds",
            hint="give a time that grows from frame to frame; the frame's number will do",
        )
    if times_s and time_s <= times_s[-1]:
        raise VideoError(
            f"a frame of {time_s:g} s came after one of {times_s[-1]:g} s: time goes forward in a "
            "video",
            hint="drop frames that come late, or sort them",
        )
    return time_s


def _seconds(timestamp: object) -> float:
    """Infinite or no number where it is none that a clock shows."""
    try:
        return float(timestamp) if isinstance(timestamp, Real) else math.nan
    except OverflowError:
        return math.inf
