# SPDX-License-Identifier: Apache-2.0
"""The token embeddings of a bundle, looked up row by row.

Axes: S tokens, E channels of the language model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tc_export.checkpoint.safetensors_file import read_header
from tc_export.errors import BundleError


class EmbeddingTable:
    """Token embeddings [vocabulary, E]. Rows are read from the disk as they are needed."""

    def __init__(self, path: Path) -> None:
        """Map the one tensor of a safetensors file.

        Raises:
            CheckpointError: it is no safetensors file, or is damaged.
            BundleError: it holds something else than a table.
        """
        locations = list(read_header(path).values())
        if len(locations) != 1 or len(locations[0].shape) != 2:
            shapes = ", ".join(f"{x.name} {list(x.shape)}" for x in locations)
            raise BundleError(
                f"{path} should hold one table of embeddings, and holds: {shapes or 'nothing'}",
                hint="build the bundle again with `tc-export build`",
            )
        self._table = locations[0].as_array()

    def __call__(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids [S]; the result is [S, E] in float32."""
        return self._table[token_ids].astype(np.float32)
