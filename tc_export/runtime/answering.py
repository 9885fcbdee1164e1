# SPDX-License-Identifier: Apache-2.0
"""An opened bundle: watches frames, and answers questions about them.

Axes: N frames, S tokens, E channels of the language model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tc_export.bundle import EngineState, Manifest, read_manifest
from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.hf_config import CheckpointConfig, read_config
from tc_export.checkpoint.safetensors_file import read_header
from tc_export.contracts.graph_io import FRAMES_A_CALL
from tc_export.engine.loading import Engines, load_engines
from tc_export.engine.session import DecoderSession
from tc_export.errors import BundleError, UsageError
from tc_export.model.positions import Clip
from tc_export.runtime.generation import GenerationConfig, generate
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.prompt import Prompt, PromptBuilder, TextStream

_VISUAL_PLACE = -1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said, and how fast. Times are from the first frame's preprocessing on."""

    text: str
    prompt_tokens: int
    new_tokens: int
    time_to_first_token_s: float
    decode_tokens_per_s: float | None
    """Tokens after the first a second; None where there was no second token."""


class EmbeddingTable:
    """Token embeddings [vocabulary, E], read from the disk as they are needed."""

    def __init__(self, path: Path) -> None:
        (location,) = read_header(path).values()
        self._table = location.as_tensor()

    def __call__(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids [S]; the result is [S, E] in float32."""
        rows = self._table[torch.from_numpy(token_ids)]
        embeds: NDArray[np.float32] = rows.to(torch.float32).numpy()
        return embeds


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
        cls, bundle: Path, *, native: bool | None = None, threads: int | None = None
    ) -> VideoLanguageModel:
        """Open a bundle whose engine is built.

        Raises:
            BundleError: not a bundle, damaged, of another version, or without its engine.
            EnvironmentLacks: the native library is demanded and cannot serve.
        """
        manifest = read_manifest(bundle)
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

        Raises:
            UsageError: more frames than the bundle's profile has.
        """
        most = self.manifest.profile.max_frames
        if len(frames) > most:
            raise UsageError(
                f"{len(frames)} frames were sampled, and the bundle takes {most}",
                hint=f"use --frames {most}, or build with a larger --max-frames",
            )
        features = []
        for start in range(0, len(frames), FRAMES_A_CALL):
            some = frames[start : start + FRAMES_A_CALL]
            feeds = {"pixel_values": preprocess(some, self._preprocess)}
            features.append(self.engines.vision.run(feeds)["visual_features"])
            advance(len(some))
        return np.concatenate(features)

    def prompt(self, question: str, frames: int, new_tokens: int) -> Prompt:
        """Build the prompt for a question about one clip.

        Raises:
            UsageError: it does not fit the bundle's context together with the answer.
        """
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
        generation: GenerationConfig,
        on_text: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> Answer:
        """Watch the frames and answer the question; `on_text` gets the answer as it comes.

        `on_progress` gets the phase (`frames` or `tokens`), how many are done since, and in all.
        """
        prompt = self.prompt(question, len(frames), generation.max_new_tokens)
        start = time.perf_counter()
        features = self.watch(frames, lambda n: on_progress("frames", n, len(frames)))
        session = self.session()
        logits = session.prefill(
            self.embed(prompt, features),
            prompt.segments,
            lambda n: on_progress("tokens", n, prompt.length),
        )
        stream = TextStream(self.prompts.tokenizer)
        text, times = "", []
        for token in generate(
            session, logits, self._embed_token, self.config.eos_token_ids, generation
        ):
            times.append(time.perf_counter())
            text = self._say(text, stream.push(token), on_text)
        text = self._say(text, stream.finish(), on_text)
        times = times or [time.perf_counter()]
        seconds = times[-1] - times[0]
        return Answer(
            text=text.rstrip(),
            prompt_tokens=prompt.length,
            new_tokens=len(times),
            time_to_first_token_s=times[0] - start,
            decode_tokens_per_s=(len(times) - 1) / seconds if seconds else None,
        )

    @staticmethod
    def _say(text: str, piece: str, on_text: Callable[[str], None]) -> str:
        """Hand out a piece of the answer, which does not begin with white space; return it all."""
        piece = piece if text else piece.lstrip()
        on_text(piece)
        return text + piece

    def _embed_token(self, token: int) -> NDArray[np.float32]:
        embed: NDArray[np.float32] = self._embedding(np.array([token]))[0]
        return embed


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
