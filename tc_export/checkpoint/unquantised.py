# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a quantised one was made from, as its config.json says.

`quantization_config` has, beside the recipe, `unquantised`: the folder as it was then, and the
digest of what was in it. Whoever compares the two finds it there, and sees whether it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError

from tc_export.config import Config

if TYPE_CHECKING:
    from tc_export.checkpoint.reader import Checkpoint

KEY = "unquantised"


class Unquantised(Config):
    """A checkpoint before it was quantised.

    Attributes:
        folder: where it was, from the root.
        digest: that `Checkpoint.digest` gives of it, without settings of a user.
    """

    folder: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Describe an opened checkpoint."""
        return cls(folder=str(checkpoint.folder.resolve()), digest=checkpoint.digest())

    @classmethod
    def stated_in(cls, document: Mapping[str, Any]) -> Self | None:
        """What a config.json says; None where it says nothing that can be read."""
        quantization = document.get("quantization_config")
        if not isinstance(quantization, Mapping):
            return None
        try:
            return cls.model_validate(quantization.get(KEY))
        except ValidationError:
            return None
