# SPDX-License-Identifier: Apache-2.0
"""The text of an answer, and the stream that it comes through."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tc_export.errors import UsageError
from tc_export.runtime.answer import Answer, AnswerStream, Finish, Transcript
from tests.runtime.tokenizers_for_tests import as_runtime, byte_level

ANSWER = Answer(
    text="a b",
    finish=Finish.END,
    prompt_tokens=1,
    new_tokens=2,
    time_to_first_token_s=1.0,
    decode_tokens_per_s=None,
)


def pieces() -> Generator[tuple[int, str], None, list[Answer]]:
    yield 0, "a"
    yield 0, " b"
    return [ANSWER]


@pytest.mark.parametrize("text", ["  A  red\n\n ball \n", "ball", " \n ", "a\n b", ""])
def test_white_space_is_said_only_between_words(text: str) -> None:
    tokenizer = as_runtime(byte_level())
    spoken = Transcript(tokenizer, prompt_tokens=3)
    tokens = tokenizer.encode(text)
    pieces = [*map(spoken.push, tokens), spoken.end(Finish.LENGTH)]
    assert spoken.answer is not None
    assert "".join(pieces) == spoken.answer.text == text.strip()
    assert (spoken.answer.new_tokens, spoken.answer.prompt_tokens) == (len(tokens), 3)


def test_a_stream_has_its_answer_at_its_end() -> None:
    stream = AnswerStream(pieces())
    assert next(stream) == "a"
    with pytest.raises(UsageError, match="has not ended"):
        _ = stream.answer
    assert list(stream) == [" b"]
    assert stream.answer is ANSWER
    assert list(stream) == []
    assert stream.answer is ANSWER


def test_a_closed_stream_has_none() -> None:
    stream = AnswerStream(pieces())
    next(stream)
    stream.close()
    assert list(stream) == []
    with pytest.raises(UsageError, match="has not ended"):
        _ = stream.answer
