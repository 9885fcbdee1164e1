# SPDX-License-Identifier: Apache-2.0
"""An opened bundle: watches frames, and answers questions about them.

An answer can be had whole (`answer`), piece by piece (`stream`), or of a video file (`ask`). Any of
them can be cancelled: that is no error, since what was said until then has been said. The answer
then says so in `finish`. Any number of answers may be under way at once; each has its own cache.

Axes: N frames, S tokens, E channels of the language model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tc_export.bundle import EngineState, Manifest, open_bundle
from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.hf_config import CheckpointConfig, read_config
from tc_export.contracts.graph_io import FRAMES_A_CALL, PIXEL_VALUES, VISUAL_FEATURES
from tc_export.engine.loading import Engines, load_engines
from tc_export.engine.session import DecoderSession
from tc_export.errors import BundleError, UsageError
from tc_export.model.positions import Clip
from tc_export.runtime.embedding import EmbeddingTable
from tc_export.runtime.generation import GenerationConfig, generate
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.prompt import Prompt, PromptBuilder, TextStream
from tc_export.runtime.video import SampledVideo, Sampling, Uniform, sample_video

_VISUAL_PLACE = -1

Cancel = Callable[[], bool]
"""Asked before each call of an engine; True ends the answer. `threading.Event().is_set` is one."""

Progress = Callable[[str, int, int], None]
"""Gets the phase (`frames` or `tokens`), how many are done since the last call, and in all."""


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


class VideoLanguageModel:
    """Everything of a bundle that answering needs."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        config: CheckpointConfig,
        engines: Engines,
        embedding: EmbeddingTable,
        prompts: PromptBuilder,
        folder: Path,
    ) -> None:
        self.manifest = manifest
        self.config = config
        self.engines = engines
        self.prompts = prompts
        self._embedding = embedding
        self._preprocess = read_preprocess_config(folder, config.model.vision.image_size)

    @classmethod
    def open(
        cls,
        bundle: Path,
        *,
        native: bool | None = None,
        threads: int | None = None,
        on_read: Callable[[int, int], None] = lambda done, total: None,
    ) -> VideoLanguageModel:
        """Open a bundle whose engine is built, once its files are found to be whole.

        `on_read` gets how many bytes are checked, and how many there are.

        Raises:
            BundleError: not a bundle, damaged, of another version, or without its engine.
            EnvironmentLacks: the native library is demanded and cannot serve.
        """
        manifest = open_bundle(bundle, on_read)
        return cls(
            manifest=manifest,
            config=read_config(bundle),
            engines=open_engines(bundle, manifest, native=native, threads=threads),
            embedding=EmbeddingTable(bundle / EMBEDDING_FILE),
            prompts=PromptBuilder.load(bundle),
            folder=bundle,
        )

    def watch(
        self,
        frames: Sequence[NDArray[np.uint8]],
        advance: Callable[[int], None] = lambda frames: None,
    ) -> NDArray[np.float32]:
        """Turn frames [H, W, 3] into visual features [N, tokens_per_frame, E].

        `advance` is called before the first frame, with 0, and after each call of the engine, with
        the number of its frames.

        Raises:
            UsageError: no frames, or more than the bundle's profile has.
        """
        self._check_frames(len(frames))
        advance(0)
        features = []
        for start in range(0, len(frames), FRAMES_A_CALL):
            some = frames[start : start + FRAMES_A_CALL]
            feeds = {PIXEL_VALUES: preprocess(some, self._preprocess)}
            features.append(self.engines.vision.run(feeds)[VISUAL_FEATURES])
            advance(len(some))
        return np.concatenate(features)

    def _check_frames(self, count: int) -> None:
        most = self.manifest.profile.max_frames
        if count == 0:
            raise UsageError("there is no frame to look at", hint=f"give 1 to {most} frames")
        if count > most:
            raise UsageError(
                f"{count} frames were sampled, and the bundle takes {most}",
                hint=f"use --frames {most}, or build with a larger --max-frames",
            )

    def prompt(self, question: str, frames: int, new_tokens: int) -> Prompt:
        """Build the prompt for a question about one clip.

        Raises:
            UsageError: there are no frames or too many, or prompt and answer do not fit the
                bundle's context.
        """
        self._check_frames(frames)
        clip = Clip(frames, self.config.model.tokens_per_frame)
        prompt = self.prompts.build(question, [clip])
        prompt.check_fits(self.manifest.profile.max_length, new_tokens)
        return prompt

    def session(self) -> DecoderSession:
        """A new sequence with an empty cache."""
        rows = self.manifest.profile.max_length
        return DecoderSession(self.engines.decoder, self.config.model, rows)

    def embed(self, prompt: Prompt, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed a prompt [S], with the features in its visual places: [S, E]."""
        token_ids = prompt.token_ids(_VISUAL_PLACE)
        embeds = self._embedding(np.maximum(token_ids, 0))
        embeds[token_ids == _VISUAL_PLACE] = features.reshape(-1, features.shape[-1])
        return embeds

    def answer(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        generation: GenerationConfig | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        on_progress: Progress = lambda phase, done, total: None,
        *,
        cancel: Cancel = lambda: False,
    ) -> Answer:
        """Watch frames [H, W, 3] and answer a question about them.

        Args:
            frames: in the order of time; as many as the bundle's profile has, or fewer.
            question: text of the user.
            generation: how tokens are chosen; by default greedily, at most 128.
            on_text: gets the answer piece by piece.
            on_progress: gets how far watching and reading the prompt have come.
            cancel: ends the answer where it is; see `Cancel`.

        Raises:
            UsageError: a wrong number of frames, or a question that does not fit.
            VideoError: frames of several sizes, where the model does not make them one.
        """
        stream = self.stream(frames, question, generation, on_progress, cancel=cancel)
        for piece in stream:
            on_text(piece)
        return stream.answer

    def stream(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        generation: GenerationConfig | None = None,
        on_progress: Progress = lambda phase, done, total: None,
        *,
        cancel: Cancel = lambda: False,
    ) -> AnswerStream:
        """Answer as `answer` does; the text is pulled from the result, piece by piece.

        Raises:
            UsageError: a wrong number of frames, or a question that does not fit.
        """
        generation = generation or GenerationConfig()
        prompt = self.prompt(question, len(frames), generation.max_new_tokens)
        return AnswerStream(self._pieces(frames, prompt, generation, on_progress, cancel))

    def ask(
        self,
        video: Path,
        question: str,
        sampling: Sampling | None = None,
        generation: GenerationConfig | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        *,
        cancel: Cancel = lambda: False,
    ) -> VideoAnswer:
        """Answer a question about a video or image file.

        `sampling` says which frames are looked at: by default as many as the bundle takes, spread
        evenly. For the rest see `answer`.

        Raises:
            VideoError: the video cannot be used.
            UsageError: more frames than the profile has, or a question that does not fit.
        """
        seen = sample_video(video, sampling or Uniform(frames=self.manifest.profile.max_frames))
        answer = self.answer(seen.frames, question, generation, on_text, cancel=cancel)
        return about(seen, answer)

    def _pieces(
        self,
        frames: Sequence[NDArray[np.uint8]],
        prompt: Prompt,
        generation: GenerationConfig,
        on_progress: Progress,
        cancel: Cancel,
    ) -> Generator[str, None, Answer]:
        """Yield the text as it is made, and return the answer."""
        start = time.perf_counter()
        text = _SpokenText(TextStream(self.prompts.tokenizer))
        times: list[float] = []
        finish = Finish.CANCELLED
        try:
            session, logits = self._prefill(frames, prompt, on_progress, cancel)
            ends = self.config.eos_token_ids
            for token in generate(session, logits, self._embed_token, ends, generation):
                times.append(time.perf_counter())
                if piece := text.push(token):
                    yield piece
                if len(times) < generation.max_new_tokens:
                    _check(cancel)
            finish = Finish.LENGTH if len(times) == generation.max_new_tokens else Finish.END
        except _CancelledError:
            pass
        if piece := text.finish():
            yield piece
        if finish is Finish.END and not times:
            first_s: float | None = time.perf_counter() - start
        else:
            first_s = times[0] - start if times else None
        seconds = times[-1] - times[0] if times else 0.0
        return Answer(
            text=text.whole,
            finish=finish,
            prompt_tokens=prompt.length,
            new_tokens=len(times),
            time_to_first_token_s=first_s,
            decode_tokens_per_s=(len(times) - 1) / seconds if seconds else None,
        )

    def _prefill(
        self,
        frames: Sequence[NDArray[np.uint8]],
        prompt: Prompt,
        on_progress: Progress,
        cancel: Cancel,
    ) -> tuple[DecoderSession, NDArray[np.float32]]:
        """A session that has read the prompt, and the logits [V] of the prompt's last token."""

        def advance(phase: str, done: int, total: int) -> None:
            on_progress(phase, done, total)
            _check(cancel)

        features = self.watch(frames, lambda done: advance("frames", done, len(frames)))
        session = self.session()
        logits = session.prefill(
            self.embed(prompt, features),
            prompt.segments,
            lambda done: advance("tokens", done, prompt.length),
        )
        return session, logits

    def _embed_token(self, token: int) -> NDArray[np.float32]:
        embed: NDArray[np.float32] = self._embedding(np.array([token]))[0]
        return embed


class _CancelledError(Exception):
    """Ends an answer from within."""


def _check(cancel: Cancel) -> None:
    if cancel():
        raise _CancelledError


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


def about(video: SampledVideo, answer: Answer) -> VideoAnswer:
    """Put an answer together with what was seen of the video."""
    return VideoAnswer(
        answer=answer,
        frame_indices=video.indices,
        frame_times_s=video.times_s,
        notes=video.notes,
    )


def open_engines(
    bundle: Path, manifest: Manifest, *, native: bool | None = None, threads: int | None = None
) -> Engines:
    """Load the engines that the manifest says were built.

    Raises:
        BundleError: the engine is not built yet, or cannot be loaded.
        EnvironmentLacks: this machine cannot run it.
    """
    record = manifest.engine
    if record is None or record.state is EngineState.PENDING:
        step = record.next_step if record else "build the bundle again"
        raise BundleError(f"the engine of {bundle} is not built yet", hint=step)
    return load_engines(
        bundle,
        manifest.custom_nodes,
        backend=record.backend,
        builds=manifest.engine_builds,
        native=native,
        threads=threads,
    )
