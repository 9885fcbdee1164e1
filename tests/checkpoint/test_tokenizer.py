# SPDX-License-Identifier: Apache-2.0
"""Whatever form a checkpoint's tokenizer has, the bundle's gives what transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tc_export.checkpoint.tokenizer import TOKENIZER_FILES, write_tokenizer
from tc_export.errors import CheckpointError
from tests.runtime.tokenizers_for_tests import byte_level, sentencepiece_like

TEXTS = [
    "",
    "USER: <image>\nWhat colour is the ball? ASSISTANT:",
    "<s> A</s>B <video>video déjà vu 🎈",
    "  two  spaces ",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


def bundled(checkpoint: Path) -> PreTrainedTokenizerFast:
    """What a build writes of the checkpoint, as a plain tokenizer.json is read."""
    output = checkpoint.parent / "bundle"
    output.mkdir()
    write_tokenizer(checkpoint, output)
    assert sorted(path.name for path in output.iterdir()) == sorted(TOKENIZER_FILES)
    special = json.loads((output / "special_tokens_map.json").read_text())
    return PreTrainedTokenizerFast(tokenizer_file=str(output / "tokenizer.json"), **special)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def check_the_same(checkpoint: Path) -> PreTrainedTokenizerFast:
    ours, theirs = bundled(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours(text, add_special_tokens=special)["input_ids"] == expected, text
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    return ours


@pytest.mark.parametrize("make", [sentencepiece_like, byte_level])
def test_a_tokenizer_as_transformers_saves_it(make, folder: Path) -> None:  # type: ignore[no-untyped-def]
    make(["<image>"]).save_pretrained(folder)
    check_the_same(folder)


def test_tokens_that_only_the_configuration_has(folder: Path) -> None:
    """As transformers 4 saved tokens that were added to a slow tokenizer."""
    tokenizer = sentencepiece_like()
    tokenizer.save_pretrained(folder)
    token = {"content": "<image>", "special": True, "normalized": False}
    token |= {"lstrip": False, "rstrip": False, "single_word": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(len(tokenizer)): token})
    assert check_the_same(folder).get_added_vocab()["<image>"] == len(tokenizer)


def test_a_class_that_builds_its_tokenizer_anew(folder: Path) -> None:
    """Then tokenizer.json is not what the checkpoint's tokenizer does."""
    sentencepiece_like(["<image>"]).save_pretrained(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    read = AutoTokenizer.from_pretrained(folder)
    assert isinstance(read, LlamaTokenizer)
    as_it_is = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert any(read(text)["input_ids"] != as_it_is(text)["input_ids"] for text in TEXTS)
    check_the_same(folder)


def save_sentencepiece_model(path: Path) -> None:
    """LLaMA's kind of `tokenizer.model`: byte-pair encoding with bytes for what it has not."""
    trainer = pytest.importorskip("sentencepiece", reason="the package sentencepiece is missing")
    lines = path.with_suffix(".txt")
    lines.write_text("\n".join(TEXTS * 4) + "\nWhat is shown in the video? A red ball moves.\n")
    trainer.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    lines.unlink()
    path.with_suffix(".vocab").unlink()


def test_a_sentencepiece_model_alone(folder: Path) -> None:
    save_sentencepiece_model(folder / "tokenizer.model")
    values = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = check_the_same(folder)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        write_tokenizer(tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def _damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def _of_own_code(folder: Path) -> None:
    """A tokenizer that would run the folder's own code if it were let."""
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Own", None]},
    )
    (folder / "own.py").write_text("raise SystemExit('the checkpoint ran its code')")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"")


@pytest.mark.parametrize("damage", [_damaged, _of_own_code])
def test_what_cannot_be_read_is_refused(damage, folder: Path) -> None:  # type: ignore[no-untyped-def]
    sentencepiece_like().save_pretrained(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=f"the tokenizer in {folder} cannot be read"):
        write_tokenizer(folder, folder.parent)
