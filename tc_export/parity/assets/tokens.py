# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: what it is made of, what it makes of texts, and which of its tokens are special.

A few texts would not show one merge in fifty thousand, so the whole of it is compared too, part by
part, as the tokenizers library writes it down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from tc_export.errors import CheckpointError
from tc_export.parity.assets.comparison import (
    AssetComparison,
    AssetFindings,
    CannotBeReadError,
    agreed,
    differs,
    first_difference,
    read_by_transformers,
)
from tc_export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer

NAME = "tokenizer"

TEXTS = (
    "",
    " ",
    "What is shown in the video?",
    " two words, with a space before",
    "   three spaces   and three  after   ",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. Größe, naïve, cafe\u0301",
    "视频里有什么。一个红色的球。",
    "動画には何が映っていますか。ひらがなとカタカナ",
    "무엇이 보이나요? Что видно? ماذا يظهر؟ क्या दिख रहा है?",
    "a ball 🎈, a family 👨‍👩‍👧‍👦, a flag 🇩🇪, a thumb 👍🏽",
    "line one\nline two\n\n\ttabbed\r\nand a return",
    "1234567890 3.14159 1,000,000 0x1F 2^10",
    "def f(x):\n    return {'a': [x, -x]}  # <tag> & \"quotes\"",
    "ALL CAPITALS, CamelCase, snake_case, under__score",
    "\u0000\u0007\u200b\ufeff\ue000\ufffd",
    "USER: <image>\n<video>\nWhat? ASSISTANT:",
    "<s></s><|im_start|>user\n<|im_end|>[INST] [/INST]",
)


def read_tokenizer(checkpoint: Path) -> Any:
    """transformers' tokenizer of a checkpoint.

    Raises:
        CannotBeReadError: it has none, or not one that the tokenizers library runs.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = read_by_transformers(
        NAME,
        lambda: AutoTokenizer.from_pretrained(
            str(checkpoint), local_files_only=True, trust_remote_code=False
        ),
    )
    if not isinstance(found, PreTrainedTokenizerFast):
        raise CannotBeReadError(
            f"{NAME}: transformers' {type(found).__name__} has no form as {TOKENIZER_FILE}"
        )
    return found


def compare_tokenizer(bundle: Path, theirs: Any) -> AssetFindings:
    """Compare the bundle's tokenizer with transformers' of the checkpoint."""
    try:
        ours = Tokenizer.load(bundle)
    except CheckpointError as error:
        return AssetFindings([differs(NAME, str(error), "a tokenizer")])
    return AssetFindings(
        [
            _compare_parts(bundle, theirs),
            _compare_texts(ours, theirs),
            _compare_special_tokens(ours, theirs),
        ]
    )


def _compare_parts(bundle: Path, theirs: Any) -> AssetComparison:
    name = f"{NAME}: vocabulary and rules"
    found = _parts(tokenizers.Tokenizer.from_file(str(bundle / TOKENIZER_FILE)))
    expected = _parts(tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str()))
    difference = first_difference(found, expected)
    if difference is None:
        return agreed(name, f"{len(theirs)} tokens", "all of them, in what is not text too")
    place, value, true_value = difference
    return differs(name, f"{place} is {json.dumps(value)}", json.dumps(true_value))


def _parts(backend: tokenizers.Tokenizer) -> Any:
    """A tokenizer as JSON; padding and truncation are for training, and are not used."""
    backend.no_padding()
    backend.no_truncation()
    return json.loads(backend.to_str())


def _compare_texts(ours: Tokenizer, theirs: Any) -> AssetComparison:
    name = f"{NAME}: texts"
    texts = [*TEXTS, *_around_special_tokens(theirs)]
    for text in texts:
        for special in (False, True):
            found = ours.encode(text, special=special)
            given = theirs(text, add_special_tokens=special, truncation=False, padding=False)
            expected = list(given["input_ids"])
            if found != expected:
                return differs(name, found, expected, f"ids of {text!r}")
            back = ours.decode(expected, special=special)
            should_be = theirs.decode(
                expected, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
            if back != should_be:
                return differs(name, back, should_be, f"text of the ids of {text!r}")
    return agreed(name, f"{len(texts)} texts", "to ids and back, with special tokens and without")


def _around_special_tokens(theirs: Any) -> Iterator[str]:
    """Texts in which special tokens stand by themselves, between letters, and between spaces."""
    tokens = sorted({*theirs.all_special_tokens, *theirs.get_added_vocab()})[:50]
    for token in tokens:
        yield from (token, f"a{token}b", f"a {token} b")


def _compare_special_tokens(ours: Tokenizer, theirs: Any) -> AssetComparison:
    """The tokens that the tokenizer names, which templates may use by these names."""
    name = f"{NAME}: special tokens"
    expected = {key: str(token) for key, token in theirs.special_tokens_map.items()}
    found = {key: ours.special_tokens.get(key) for key in expected}
    if found != expected:
        return differs(name, found, expected)
    return agreed(name, ", ".join(f"{key} {token}" for key, token in sorted(expected.items())))
