# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the two kinds that LLaVA's language models have, trained on a few lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tc_export.runtime import tokenizer as runtime

_TEXT = [
    "USER: What is shown in the video? ASSISTANT: A red ball moves from left to right.",
    "A chat between a curious user and an assistant. system user assistant image video",
    "What colour is the ball? Which comes first? How many are there? déjà vu, naïve",
]


def sentencepiece_like(
    control_tokens: Sequence[str] = (), *, legacy: bool = True
) -> PreTrainedTokenizerFast:
    """As LLaMA's: spaces are ▁, unknown characters are bytes, <s> comes first.

    `legacy` says whether text after a control token gets a space in front.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    # Byte tokens are part of the vocabulary, and no control tokens that a text could name.
    state = Tokenizer.from_str(_without_added_bytes(tokenizer.to_str()))
    state.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _wrap(state, control_tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(control_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """As GPT's and Qwen's: every byte is a token, there is no first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return _wrap(tokenizer, ["<|im_start|>", *control_tokens], eos_token="<|im_end|>")


def as_runtime(tokenizer: PreTrainedTokenizerFast) -> runtime.Tokenizer:
    """The same tokenizer as answering uses it."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return runtime.Tokenizer(backend, tokenizer.special_tokens_map)


def _without_added_bytes(state: str) -> str:
    values: dict[str, Any] = json.loads(state)
    values["added_tokens"] = [
        token for token in values["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return json.dumps(values)


def _wrap(
    tokenizer: Tokenizer, control_tokens: Sequence[str], **special: str
) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    wrapped.add_tokens([AddedToken(name, special=True) for name in control_tokens])
    return wrapped
