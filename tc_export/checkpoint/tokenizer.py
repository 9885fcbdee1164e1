# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tokenizer, in whatever form it has, to the one form that a bundle carries.

Checkpoints differ: some have SentencePiece's `tokenizer.model` alone; in some, tokens that were
added later stand in a file of their own; and for some classes transformers builds the tokenizer
anew, so that it is not what `tokenizer.json` says. transformers knows all of that, so it reads the
checkpoint here, at the build. What it made of it is written out, and answering needs no more than
the tokenizers library.
"""

from __future__ import annotations

import json
from pathlib import Path

from tc_export.errors import CheckpointError

_SOURCES = ("tokenizer.json", "tokenizer.model")
_TOKENIZER = "tokenizer.json"
_SPECIAL_TOKENS = "special_tokens_map.json"


TOKENIZER_FILES = (_TOKENIZER, _SPECIAL_TOKENS)
"""The files that `write_tokenizer` writes."""


def check_tokenizer_is_there(checkpoint: Path) -> None:
    """See that a checkpoint has a tokenizer, in a form that is known. It is not read.

    Raises:
        CheckpointError: it has none.
    """
    if not any((checkpoint / name).is_file() for name in _SOURCES):
        raise CheckpointError(
            f"{checkpoint} has no tokenizer: neither {' nor '.join(_SOURCES)}",
            hint="add the tokenizer's files to the checkpoint: without them no question can be "
            "asked",
        )


def write_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's tokenizer, and which of its tokens are special, into `folder`.

    No code of the checkpoint is run.

    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read.
    """
    check_tokenizer_is_there(checkpoint)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and the libraries below raise whatever they like
        raise CheckpointError(
            f"the tokenizer in {checkpoint} cannot be read: {' '.join(str(error).split())}",
            hint="expected: tokenizer.json, as save_pretrained of transformers writes it, or "
            "SentencePiece's tokenizer.model",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"the tokenizer in {checkpoint} is of the class {type(tokenizer).__name__}, which "
            "cannot be written as tokenizer.json",
            hint="save it as a fast tokenizer of transformers first",
        )
    (folder / _TOKENIZER).write_text(
        tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8"
    )
    (folder / _SPECIAL_TOKENS).write_text(
        json.dumps(tokenizer.special_tokens_map, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
