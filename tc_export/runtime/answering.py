# SPDX-License-Identifier: Apache-2.0
"""An opened bundle: watches frames, and answers questions about them.

An answer can be had whole (`answer`), piece by piece (`stream`), or of a video file (`ask`), and
those of several questions about the same frames together (`answer_many`). Any of them can be
cancelled: that is no error, since what was said until then has been said. The answer then says so
in `finish`. Any number of answers may be under way at once; each has its own cache.

Axes: N frames, B questions, S tokens, E channels of the language model, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tc_export.bundle import EngineState, Manifest, open_bundle
from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.hf_config import CheckpointConfig, read_config
from tc_export.contracts.graph_io import FRAMES_A_CALL, PIXEL_VALUES, VISUAL_FEATURES
from tc_export.engine.batch import DecoderBatch
from tc_export.engine.loading import Engines, load_engines
from tc_export.engine.session import DecoderSession
from tc_export.errors import BundleError, UsageError
from tc_export.model.positions import Clip
from tc_export.runtime.answer import Answer, AnswerStream, VideoAnswer, about
from tc_export.runtime.embedding import EmbeddingTable
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.prompt import Prompt, PromptBuilder, shared_tokens
from tc_export.runtime.speaking import (
    BATCH_SIZE,
    Cancel,
    ReadPrompts,
    Speaker,
    check,
    check_batch_size,
    hear,
)
from tc_export.runtime.video import Sampling, Uniform, sample_video

_VISUAL_PLACE = -1

Progress = Callable[[str, int, int], None]
"""Gets the phase (`frames` or `tokens`), how many are done since the last call, and in all."""


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
            UnsupportedEnvironment: the native library is demanded and cannot serve.
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

    def each_prompt(self, questions: Sequence[str], frames: int, new_tokens: int) -> list[Prompt]:
        """As `prompt`, for each question; where there are several, an error says of which it is."""
        self._check_frames(frames)
        if len(questions) == 1:
            return [self.prompt(questions[0], frames, new_tokens)]
        prompts = []
        for number, question in enumerate(questions, start=1):
            try:
                prompts.append(self.prompt(question, frames, new_tokens))
            except UsageError as error:
                which = f"question {number} of {len(questions)}"
                raise UsageError(f"{which}: {error}", hint=error.hint) from error
        return prompts

    def session(self) -> DecoderSession:
        """A new sequence with an empty cache."""
        rows = self.manifest.profile.max_length
        return DecoderSession(self.engines.decoder, self.config.model, rows)

    def speaker(self) -> Speaker:
        """What says the answers of this model."""
        return Speaker(
            tokenizer=self.prompts.tokenizer,
            embedding=self._embedding,
            end_tokens=tuple(self.config.eos_token_ids),
        )

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
        return AnswerStream(self._pieces(frames, [prompt], generation, 1, on_progress, cancel))

    def answer_many(
        self,
        frames: Sequence[NDArray[np.uint8]],
        questions: Sequence[str],
        generation: GenerationConfig | None = None,
        on_text: Callable[[int, str], None] = lambda question, text: None,
        on_progress: Progress = lambda phase, done, total: None,
        *,
        batch_size: int = BATCH_SIZE,
        cancel: Cancel = lambda: False,
    ) -> list[Answer]:
        """Watch frames [H, W, 3] once, and answer several questions about them.

        Each answer is the one that `answer` gives, up to rounding; each draws from the seed by
        itself. What the prompts have in common, the frames above all, is prefilled once. Then the
        questions go through the engine as one batch, or one after another where it was built for
        one sequence (TensorRT).

        Args:
            frames: as for `answer`.
            questions: in the order of the answers; none is no error, and nothing is watched then.
            generation: how tokens are chosen, for every question.
            on_text: gets the number of a question, from 0 on, and the next piece of its answer.
            on_progress: as for `answer`; the tokens are those of all prompts.
            batch_size: most questions at once, 1 or more: each takes a cache of its own.
            cancel: ends the answers that have not ended by themselves, where they are.

        Raises:
            UsageError: a wrong number of frames, a question that does not fit (the message says
                which), or no batch.
            VideoError: as `answer`.
        """
        check_batch_size(batch_size)
        if not questions:
            return []
        generation = generation or GenerationConfig()
        prompts = self.each_prompt(questions, len(frames), generation.max_new_tokens)
        pieces = self._pieces(frames, prompts, generation, batch_size, on_progress, cancel)
        return hear(pieces, on_text)

    def ask(
        self,
        video: str | os.PathLike[str],
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
        return about(seen, answer, self.config.image_note)

    def _pieces(
        self,
        frames: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Prompt],
        generation: GenerationConfig,
        batch_size: int,
        on_progress: Progress,
        cancel: Cancel,
    ) -> Generator[tuple[int, str], None, list[Answer]]:
        """Yield the pieces of text as they are made, each with its question's index from 0 on.

        Returns the answers.
        """
        speaker = self.speaker()
        read = self._read(speaker, frames, prompts, batch_size, on_progress, cancel)
        lengths = [prompt.length for prompt in prompts]
        return speaker.speak(lengths, read, generation, cancel)

    def _read(
        self,
        speaker: Speaker,
        frames: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Prompt],
        batch_size: int,
        on_progress: Progress,
        cancel: Cancel,
    ) -> Iterator[ReadPrompts]:
        """Watch the frames and prefill the prompts; yield batch after batch of them."""
        shared = shared_tokens(prompts) if len(prompts) > 1 else 0
        total = sum(prompt.length - shared for prompt in prompts) + shared

        def watched(done: int) -> None:
            on_progress("frames", done, len(frames))
            check(cancel)

        def read(done: int) -> None:
            on_progress("tokens", done, total)
            check(cancel)

        def begin(prompt: Prompt) -> tuple[DecoderSession, NDArray[np.float32]]:
            session = self.session()
            return session, session.prefill(self.embed(prompt, features), prompt.segments, read)

        features = self.watch(frames, watched)
        if not shared:
            for index, prompt in enumerate(prompts):
                session, logits_V = begin(prompt)
                yield range(index, index + 1), DecoderBatch(session, 1), logits_V[None]
            return
        session, _ = begin(prompts[0].first(shared))
        texts = [prompt.token_ids(_VISUAL_PLACE)[shared:] for prompt in prompts]
        yield from speaker.read_on(session, texts, batch_size, read)


def open_engines(
    bundle: Path, manifest: Manifest, *, native: bool | None = None, threads: int | None = None
) -> Engines:
    """Load the engines that the manifest says were built.

    Raises:
        BundleError: the engine is not built yet, or cannot be loaded.
        UnsupportedEnvironment: this machine cannot run it.
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
        parts=manifest.decoder_parts,
        native=native,
        threads=threads,
    )
