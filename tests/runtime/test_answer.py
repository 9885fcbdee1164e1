# SPDX-License-Identifier: Apache-2.0
"""The text of an answer, and the stream that it comes through."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tc_export.errors import UsageError
from tc_export.runtime.answer import Answer, AnswerStream, Finish, SpokenText
from tc_export.runtime.prompt import TextStream
from tests.runtime.tokenizers_for_tests import as_runtime, byte_level

ANSWER = Answer(
    text="a b",
    finish=Finish.END,
    prompt_tokens=1,
    new_tokens=2,
    time_to_first_token_s=1.0,
    decode_tokens_per_s=None,
)


def pieces() -> Generator[str, None, Answer]:
    yield "a"
    yield " b"
    return ANSWER


@pytest.mark.parametrize("text", ["  A  red\n\n ball \n", "ball", " \n ", "a\n b", ""])
def test_white_space_is_said_only_between_words(text: str) -> None:
    tokenizer = as_runtime(byte_level())
    spoken = SpokenText(TextStream(tokenizer))
    pieces = [spoken.push(token) for token in tokenizer.encode(text)] + [spoken.finish()]
    assert "".join(pieces) == spoken.whole == text.strip()


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
