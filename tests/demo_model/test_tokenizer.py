# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: one token a word of the suite, no text lost, the same after saving."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tc_export.demo_model.tokenizer import BOS, EOS, PROMPT, VIDEO, make_tokenizer
from tc_export.tasks import Split, make_items, possible_answers


def test_every_answer_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for answer in possible_answers():
        (token,) = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([token]).strip() == answer


def test_every_word_of_the_test_questions_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for question in {item.question for item in make_items(Split.TEST, 20)}:
        tokens = tokenizer("\n" + question, add_special_tokens=False)["input_ids"]
        assert len(tokens) == 1 + len(question.split()) + 1  # line break, words, last mark


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    for special in ("<", ">"):  # special tokens are taken as such, and left out when decoding
        text = text.replace(special, "")
    tokens = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(tokens, skip_special_tokens=True) == text


TOKENIZER = make_tokenizer()  # hypothesis does not allow a fixture of narrower scope here


def test_prompt_begins_with_bos_and_holds_one_place_for_the_clip(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(PROMPT.format(question="Why?"))["input_ids"])
    assert tokens[0] == BOS
    assert tokens.count(VIDEO) == 1
    assert tokens[-1] == ":"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [{"role": "user", "content": "<video>\nWhy?"}],
            PROMPT.format(question="Why?"),
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "video"}, {"type": "text", "text": "Why?"}],
                }
            ],
            PROMPT.format(question="Why?"),
        ),
        (
            [
                {"role": "user", "content": "<video>\nWhy?"},
                {"role": "assistant", "content": "red"},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
            ],
            f"USER: <video>\nWhy? ASSISTANT: red{EOS}USER: And now? ASSISTANT:",
        ),
    ],
)
def test_chat_template_gives_the_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, object]], expected: str
) -> None:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == expected


def test_saved_tokenizer_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.bos_token, loaded.eos_token) == (BOS, EOS)
    text = PROMPT.format(question="Which way does the zebra move?")
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
