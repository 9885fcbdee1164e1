# SPDX-License-Identifier: Apache-2.0
"""From prompts in a cache to the text of their answers, token by token.

Whoever has watched frames, a clip at once (`answering.py`) or frame by frame (`session/`), hands
over batches of prompts that have been read, and gets pieces of text.

Axes: B questions, S tokens, E channels of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tc_export.engine.batch import DecoderBatch, takes_batches
from tc_export.engine.session import DecoderSession
from tc_export.errors import UsageError
from tc_export.runtime.answer import Answer, Finish, Transcript
from tc_export.runtime.embedding import EmbeddingTable
from tc_export.runtime.generation import GenerationConfig, generate
from tc_export.runtime.tokenizer import Tokenizer

BATCH_SIZE = 8
"""Most questions that are answered at once, by default. Each takes a cache of its own."""

Cancel = Callable[[], bool]
"""Asked before each call of an engine; True ends the answer. `threading.Event().is_set` is one."""

ReadPrompts = tuple[range, DecoderBatch, NDArray[np.float32]]
"""Which of the questions they are of, the batch that has read them, their last logits [B, V]."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """What a model answers with once it has read a prompt."""

    tokenizer: Tokenizer
    embedding: EmbeddingTable
    end_tokens: tuple[int, ...]

    def read_on(
        self,
        session: DecoderSession,
        texts: Sequence[NDArray[np.int64]],
        batch_size: int,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[ReadPrompts]:
        """Read texts [S], each from where `session` stands, which stays there.

        A batch is to be spoken before the next is taken: they share their caches. One text alone
        is written behind the session's rows; several at once take a copy of them each.
        """
        most = batch_size if takes_batches(session.engine) else 1
        size = ceil(len(texts) / ceil(len(texts) / most))  # so that the last is as full
        batch = DecoderBatch(session, size)
        for start in range(0, len(texts), size):
            members = range(start, min(start + size, len(texts)))
            batch.rewind()
            embeds = [self.embedding(texts[index]) for index in members]
            yield members, batch, batch.append(embeds, advance)

    def speak(
        self,
        prompt_tokens: Sequence[int],
        prompts: Iterator[ReadPrompts],
        generation: GenerationConfig,
        cancel: Cancel,
    ) -> Generator[tuple[int, str], None, list[Answer]]:
        """Yield the pieces of text as they are made, each with its question's index from 0 on.

        Args:
            prompt_tokens: of each question; the answers' times are from here on.
            prompts: batch after batch. It may end all answers by `check`.
            generation: how tokens are chosen.
            cancel: ends the answers that have not ended by themselves.

        Returns:
            The answers, one for each question.
        """
        said = [Transcript(self.tokenizer, tokens) for tokens in prompt_tokens]
        try:
            for members, batch, logits_BV in prompts:
                yield from self._speak(said, members, batch, logits_BV, generation, cancel)
                if members.stop < len(said):
                    check(cancel)
        except _CancelledError:
            pass
        yield from _end([*enumerate(said)], Finish.CANCELLED)
        return [each.answer for each in said if each.answer]

    def _speak(
        self,
        said: Sequence[Transcript],
        members: range,
        batch: DecoderBatch,
        logits_BV: NDArray[np.float32],
        generation: GenerationConfig,
        cancel: Cancel,
    ) -> Iterator[tuple[int, str]]:
        """Generate the answers of one batch, whose questions are `members`."""
        steps = generate(batch, logits_BV, self._embed, self.end_tokens, generation)
        for number, tokens in enumerate(steps, start=1):
            for index, token in zip(members, tokens, strict=True):
                if token is None:
                    yield from _end([(index, said[index])], Finish.END)
                elif piece := said[index].push(token):
                    yield index, piece
            if number < generation.max_new_tokens:
                check(cancel)
        for index in members:
            whole = said[index].new_tokens == generation.max_new_tokens
            yield from _end([(index, said[index])], Finish.LENGTH if whole else Finish.END)

    def _embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.embedding(np.array(tokens, dtype=np.int64))


def hear(
    pieces: Generator[tuple[int, str], None, list[Answer]], on_text: Callable[[int, str], None]
) -> list[Answer]:
    """Read what `Speaker.speak` yields to its end, and return the answers."""
    with closing(pieces):  # at once where `on_text` fails, and not when its traceback is gone
        while True:
            try:
                index, text = next(pieces)
            except StopIteration as end:
                answers: list[Answer] = end.value
                return answers
            on_text(index, text)


def check(cancel: Cancel) -> None:
    """End the answers here, from within, where they are cancelled."""
    if cancel():
        raise _CancelledError


def check_batch_size(batch_size: int) -> None:
    """See that a batch has a question.

    Raises:
        UsageError: it has none.
    """
    if batch_size < 1:
        raise UsageError(f"a batch has 1 question or more, not {batch_size}")


class _CancelledError(Exception):
    """Ends an answer from within."""


def _end(said: Sequence[tuple[int, Transcript]], finish: Finish) -> Iterator[tuple[int, str]]:
    """End the answers that have not ended yet; yield the text that they held back."""
    for index, transcript in said:
        if transcript.answer is None and (piece := transcript.end(finish)):
            yield index, piece
