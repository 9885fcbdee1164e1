# SPDX-License-Identifier: Apache-2.0
"""A question to token ids, and token ids back to text while they are generated.

The prompt is the checkpoint's chat template's, or Vicuna's where there is none. Its visual
placeholders become clips. A placeholder, or any other control token, that stands in the *question*
stays text: only the template can place a clip or end a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tc_export.errors import CheckpointError, UsageError
from tc_export.model.positions import Clip, Segment, Text
from tc_export.runtime.template import ChatTemplate, Message, read_template
from tc_export.runtime.template_limits import TemplateLimitError
from tc_export.runtime.tokenizer import Tokenizer

QUESTION_CHARACTERS = 1_000_000
"""Longest question that is looked at: far more than any context holds."""

VISUAL_PLACEHOLDERS = ("<video>", "<image>")
_VISUAL = re.compile("|".join(map(re.escape, VISUAL_PLACEHOLDERS)))

# Stands inside a control token that the user typed, so that nothing takes it for one. It is of
# Unicode's private use, and is dropped from questions.
_BREAK = "\ue000"
_PROBE = "What is shown?"
_HALF = "\ufffd"  # what a decoder gives for bytes that are no character, or not yet one


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt: runs of text token ids, and clips between them."""

    pieces: tuple[tuple[int, ...] | Clip, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The prompt as `tc_export.model.positions.lay_out` reads it."""
        return tuple(
            piece if isinstance(piece, Clip) else Text(len(piece)) for piece in self.pieces
        )

    @property
    def length(self) -> int:
        """Tokens in the prompt, visual ones included."""
        return sum(segment.length for segment in self.segments)

    def token_ids(self, visual_token: int) -> NDArray[np.int64]:
        """All token ids [S], with `visual_token` at each place of a visual token."""
        ids: list[int] = []
        for piece in self.pieces:
            ids += [visual_token] * piece.length if isinstance(piece, Clip) else piece
        return np.array(ids, dtype=np.int64)

    def first(self, tokens: int) -> Prompt:
        """The prompt's first tokens, which do not end within a clip."""
        pieces: list[tuple[int, ...] | Clip] = []
        for piece in self.pieces:
            if tokens <= 0:
                break
            pieces.append(piece if isinstance(piece, Clip) else piece[:tokens])
            tokens -= piece.length if isinstance(piece, Clip) else len(piece)
        return Prompt(pieces=tuple(pieces))

    def around_clip(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and after the clip of a prompt that has one."""
        before: list[int] = []
        after: list[int] = []
        run = before
        for piece in self.pieces:
            if isinstance(piece, Clip):
                run = after
            else:
                run += piece
        return tuple(before), tuple(after)

    def check_fits(self, max_length: int, new_tokens: int) -> None:
        """Check that the prompt and the answer fit a context of `max_length` tokens.

        Raises:
            UsageError: with the number of tokens of each part.
        """
        if self.length + new_tokens <= max_length:
            return
        visual = sum(piece.length for piece in self.pieces if isinstance(piece, Clip))
        raise UsageError(
            f"the prompt has {self.length} tokens ({visual} of the video, "
            f"{self.length - visual} of text) and the answer may have {new_tokens}: "
            f"{self.length + new_tokens} in all, and the context holds {max_length}",
            hint="ask a shorter question, sample fewer frames, or allow fewer new tokens",
        )


def shared_tokens(prompts: Sequence[Prompt]) -> int:
    """How many tokens prompts have alike from the start on, where those hold all their clips.

    Each prompt keeps at least one token of its own, whose logits begin the answer. 0 where a clip
    stands behind the first difference: then there is little to share.
    """
    visual_token = -1
    ids = [prompt.token_ids(visual_token) for prompt in prompts]
    most = min(len(each) for each in ids) - 1
    differs = np.logical_or.reduce([each[:most] != ids[0][:most] for each in ids])
    shared = int(np.argmax(differs)) if differs.any() else most
    clip_is_later = any((each[shared:] == visual_token).any() for each in ids)
    return 0 if clip_is_later else shared


class PromptBuilder:
    """Builds prompts for one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        """Use a tokenizer and, where there is one, a Jinja chat template.

        Raises:
            CheckpointError: the template has no place for a clip, in any form that is known, or
                takes more than templates may.
        """
        self.tokenizer = tokenizer
        self._template = (
            None if template is None else ChatTemplate(template, tokenizer.special_tokens)
        )
        self._first_token = tokenizer.first_token
        vocabulary = tokenizer.added_tokens
        self._visual_ids = {vocabulary[name] for name in VISUAL_PLACEHOLDERS if name in vocabulary}
        self._placeholder = next(
            (name for name in VISUAL_PLACEHOLDERS if name in vocabulary), VISUAL_PLACEHOLDERS[0]
        )
        typed = {name for name in vocabulary if not name.isspace()} | set(VISUAL_PLACEHOLDERS)
        self._control = re.compile("|".join(map(re.escape, sorted(typed, key=len, reverse=True))))
        self._form = self._find_form()

    @classmethod
    def load(cls, folder: Path) -> PromptBuilder:
        """Read the tokenizer and the chat template of a checkpoint or a bundle. Runs no code of it.

        Raises:
            CheckpointError: there is no tokenizer, or it or its template cannot be read.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder")
        return cls(Tokenizer.load(folder), read_template(folder))

    def build(self, question: str, clips: Sequence[Clip]) -> Prompt:
        """Tokenise the question, with the clips where the template places them, in order.

        Raises:
            UsageError: the question is empty, or hides a placeholder in a way that we do not see.
        """
        if not question.strip():
            raise UsageError("the question is empty", hint="give it with --question")
        if len(question) > QUESTION_CHARACTERS:
            raise UsageError(
                f"the question has {len(question)} characters, and no context holds more than "
                f"{QUESTION_CHARACTERS}",
                hint="ask a shorter question",
            )
        text = self._form(self._defuse(question), len(clips))
        runs = self._tokenise(text)
        if len(runs) != len(clips) + 1:
            raise UsageError(
                f"the prompt has places for {len(runs) - 1} clips, and {len(clips)} are given",
                hint=f"leave {' and '.join(VISUAL_PLACEHOLDERS)} out of the question",
            )
        pieces: list[tuple[int, ...] | Clip] = []
        for run, clip in zip(runs, [*clips, None], strict=True):
            pieces += [tuple(run)] if run else []
            pieces += [clip] if clip else []
        return Prompt(pieces=tuple(pieces))

    def head(self) -> tuple[int, ...]:
        """Token ids before the clip: the same in each prompt with one, whatever the question.

        Raises:
            UsageError: the template has something of the question there.
        """
        questions = (_PROBE, f"Why? {_PROBE}")
        heads = {self.build(each, [Clip(1, 1)]).around_clip()[0] for each in questions}
        if len(heads) > 1:
            raise UsageError(
                "the chat template places the question before the video, so that no frame can be "
                "read before the question is known",
                hint="sample the video and use `answer` or `answer_many`",
            )
        return heads.pop()

    def _find_form(self) -> Callable[[str, int], str]:
        """Find a form in which the template shows both the clip and the question."""
        if self._template is None:
            return self._vicuna
        for form in (self._parts_with_video, self._parts_with_image, self._string):
            try:
                text = form(_PROBE, 1)
            except TemplateLimitError:
                raise
            except CheckpointError:  # templates fail in many ways on a form that they do not know
                continue
            if text.count(_PROBE) == 1 and len(self._tokenise(text)) == 2:
                return form
        raise CheckpointError(
            "the chat template has no place for a clip: tried content parts of type video and "
            f"image, and {self._placeholder} in the text",
            hint="check chat_template.jinja, or remove it to use Vicuna's prompt",
        )

    def _vicuna(self, question: str, clips: int) -> str:
        return f"USER: {self._visual_lines(clips)}{question} ASSISTANT:"

    def _parts_with_video(self, question: str, clips: int) -> str:
        return self._chat([{"type": "video"}] * clips + [{"type": "text", "text": question}])

    def _parts_with_image(self, question: str, clips: int) -> str:
        return self._chat([{"type": "image"}] * clips + [{"type": "text", "text": question}])

    def _string(self, question: str, clips: int) -> str:
        return self._chat(self._visual_lines(clips) + question)

    def _visual_lines(self, clips: int) -> str:
        return f"{self._placeholder}\n" * clips

    def _chat(self, content: str | list[dict[str, str]]) -> str:
        """Render one turn of the user, up to where the answer begins."""
        assert self._template is not None
        message: Message = {"role": "user", "content": content}
        return self._template.render([message])

    def _defuse(self, question: str) -> str:
        """Break each control token in the question after its first character."""
        return self._control.sub(
            lambda match: match[0][0] + _BREAK + match[0][1:], question.replace(_BREAK, "")
        )

    def _tokenise(self, text: str) -> list[list[int]]:
        """Token ids of the text before, between and after the visual placeholders."""
        if not self._visual_ids:
            # As original LLaVA does, whose vocabulary has no placeholder: each part by itself.
            first, *later = (self._encode(part) for part in _VISUAL.split(text))
            return [self._with_bos(first, text), *later]
        runs: list[list[int]] = [[]]
        for token in self._with_bos(self._encode(text), text):
            if token in self._visual_ids:
                runs.append([])
            else:
                runs[-1].append(token)
        return runs

    def _with_bos(self, ids: list[int], text: str) -> list[int]:
        """Put the first token of a sequence in front, unless the template wrote it itself."""
        if self._first_token is None:
            return ids
        token, id_ = self._first_token
        return ids if text.startswith(token) else [id_, *ids]

    def _encode(self, text: str) -> list[int]:
        first, *later = text.split(_BREAK)
        ids = self.tokenizer.encode(first)
        newline = self.tokenizer.encode("\n")
        for part in later:
            # After a newline, so that SentencePiece puts no space in front of the part.
            ids += self.tokenizer.encode(f"\n{part}")[len(newline) :]
        return ids


class TextStream:
    """Turns token ids into text one by one, and never gives half a character.

    Special tokens give no text. What is given, put together, is what decoding all the ids at once
    gives, but for bytes that are no characters: a model may say these too, and tokenizers'
    `DecodeStream` raises an error then.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Use the tokenizer of `PromptBuilder.tokenizer`."""
        self._tokenizer = tokenizer
        # Tokens whose text was given last, which say whether a space follows, and those after.
        self._given_ids: list[int] = []
        self._held_ids: list[int] = []

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is complete by it, often none."""
        self._held_ids.append(token_id)
        text = self._held_text()
        if not text or text.endswith(_HALF):
            return ""
        self._given_ids, self._held_ids = self._held_ids, []
        return text

    def finish(self) -> str:
        """Return the text still held back, without a character that never became complete."""
        return self._held_text().rstrip(_HALF)

    def _held_text(self) -> str:
        given = self._tokenizer.decode(self._given_ids)
        return self._tokenizer.decode(self._given_ids + self._held_ids)[len(given) :]
