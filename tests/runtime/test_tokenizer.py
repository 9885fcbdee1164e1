# SPDX-License-Identifier: Apache-2.0
"""The runtime's tokenizer gives what transformers' gives, read from the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tc_export.errors import CheckpointError
from tc_export.runtime.tokenizer import Tokenizer
from tests.repository import REPOSITORY
from tests.runtime.tokenizers_for_tests import byte_level, sentencepiece_like


def with_normalised_token() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["<video>"])
    tokenizer.add_tokens([AddedToken("ball", normalized=True), AddedToken("left", lstrip=True)])
    return tokenizer


def padded_and_cut() -> PreTrainedTokenizerFast:
    """As saved by a training script: padding and truncation are no part of a prompt."""
    tokenizer = sentencepiece_like(["<video>"])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64, pad_token="<unk>", pad_id=0)
    return tokenizer


MADE = {
    "sentencepiece": lambda: sentencepiece_like(["<image>", "<video>"]),
    "sentencepiece, not legacy": lambda: sentencepiece_like(["<video>"], legacy=False),
    "sentencepiece, no control tokens": sentencepiece_like,
    "bytes": lambda: byte_level(["<video>"]),
    "bytes, no control tokens": byte_level,
    "tokens that are looked for in normalised text": with_normalised_token,
    "padded and cut": padded_and_cut,
    "demo": None,
}
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["<s>", "</s>", "<video>", "<image>", "<|im_end|>", " ball", "left", "🎈"]),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=MADE)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """The same folder, read by us and by transformers."""
    make = MADE[request.param]
    folder = REPOSITORY / "checkpoints" / "tc-llava-tiny"
    if make is not None:
        folder = tmp_path_factory.mktemp("tokenizer")
        make().save_pretrained(folder)
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


Both = tuple[Tokenizer, PreTrainedTokenizerFast]


@given(text=TEXTS)
def test_texts_have_the_same_ids(both: Both, text: str) -> None:
    ours, theirs = both
    for special in (False, True):
        expected = theirs(text, add_special_tokens=special, truncation=False, padding=False)
        assert ours.encode(text, special=special) == expected["input_ids"]


@given(data=st.data())
def test_ids_have_the_same_text(both: Both, data: st.DataObject) -> None:
    ours, theirs = both
    ids = data.draw(st.lists(st.integers(0, len(ours) - 1), max_size=20))
    for special in (False, True):
        expected = theirs.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        assert ours.decode(ids, special=special) == expected


def test_tokens_are_the_same(both: Both) -> None:
    ours, theirs = both
    assert len(ours) == len(theirs)
    assert ours.added_tokens == theirs.get_added_vocab()
    named = theirs.special_tokens_map
    named.pop("pad_token", None)  # transformers takes one from the padding, and we do not pad
    assert named.items() <= ours.special_tokens.items()
    bos = theirs.bos_token
    if bos is None:
        assert ours.first_token is None
    else:
        assert ours.first_token == (bos, theirs.bos_token_id)
        assert theirs("a")["input_ids"][0] == theirs.bos_token_id


def test_a_first_token_that_is_not_added_is_none(tmp_path: Path) -> None:
    """GPT's and Qwen's tokenizers may name one, and never put it in front."""
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens["bos_token"] == "<|im_start|>"
    assert tokenizer.first_token is None


def test_a_first_token_that_is_another_is_none(tmp_path: Path) -> None:
    sentencepiece_like().save_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).first_token == ("<s>", 1)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "</s>"}))
    assert Tokenizer.load(tmp_path).first_token is None


def test_special_tokens_are_read_in_every_spelling(tmp_path: Path) -> None:
    sentencepiece_like().save_pretrained(tmp_path)
    values = {
        "add_bos_token": True,
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
        "unk_token": "<pad>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", '{"bos_token": 5}', "bos_token is 5, and should be a text"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json holds list"),
        ("special_tokens_map.json", "[" * 100_000, "special_tokens_map.json is not JSON"),
    ],
)
def test_damage_is_refused_by_name(name: str, content: str, words: str, tmp_path: Path) -> None:
    sentencepiece_like().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
