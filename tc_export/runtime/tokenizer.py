# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, through the tokenizers library alone.

All is in the `tokenizer.json` of a bundle: `tc_export.checkpoint.tokenizer` writes it at the build,
from whatever form the checkpoint has. Beside it stands which of its tokens begins a sequence, ends
one, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from tc_export.checkpoint.shards import read_json_object
from tc_export.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""Where special tokens are named; the last one that names a token counts."""


class Tokenizer:
    """A tokenizer, and what its special tokens are for."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        """Use a tokenizer; `special_tokens` are named as in `special_tokens_map.json`.

        The tokenizer becomes ours: padding and truncation are switched off in it.
        """
        self._backend = backend
        # A checkpoint may have been saved with these set, for batches of training.
        self._backend.no_padding()
        self._backend.no_truncation()
        self.special_tokens = dict(special_tokens)
        self.added_tokens: Mapping[str, int] = {
            token.content: id_ for id_, token in self._backend.get_added_tokens_decoder().items()
        }
        """Ids of the tokens that a text is searched for before it is split."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a bundle.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer: {TOKENIZER_FILE} is missing",
                hint="add the tokenizer's files to the checkpoint, and build the bundle again",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise CheckpointError(
                f"the tokenizer {path} cannot be read: {' '.join(str(error).split())}",
                hint=f"expected: {TOKENIZER_FILE}, as save_pretrained of transformers writes it",
            ) from error
        return cls(backend, _special_tokens(folder))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Ids of all tokens, added ones included."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return ids

    def __len__(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; with `special`, also those that surround every sequence."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; special tokens have none, unless `special`."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=not special)
        return text

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where the vocabulary does not have it."""
        id_: int | None = self._backend.token_to_id(token)
        return id_

    @property
    def first_token(self) -> tuple[str, int] | None:
        """The token that every sequence begins with, and its id; None where there is none."""
        token = self.special_tokens.get("bos_token")
        id_ = None if token is None else self.token_id(token)
        if token is None or id_ is None or self.encode("", special=True)[:1] != [id_]:
            return None
        return token, id_


def _special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that the folder names, for example `bos_token`, as texts."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS_FILES:
        values = read_json_object(folder / name) if (folder / name).is_file() else {}
        for key, value in values.items():
            if not key.endswith("_token") or key.startswith("add_") or value is None:
                continue
            content = value.get("content") if isinstance(value, dict) else value
            if not isinstance(content, str):
                raise CheckpointError(
                    f"{folder / name}: {key} is {json.dumps(value)}, and should be a text"
                )
            found[key] = content
    return found
