# SPDX-License-Identifier: Apache-2.0
"""The table of token embeddings, which no graph has: every row, bit for bit.

Both tables stay on the disk; a block of rows of each is in memory at a time.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.safetensors_file import read_header
from tc_export.dtypes import DType
from tc_export.parity.assets.comparison import AssetComparison, agreed, differs

NAME = "embedding table"
BLOCK_BYTES = 16 << 20

_BITS = {16: torch.int16, 32: torch.int32, 64: torch.int64}


def compare_embedding(bundle: Path, checkpoint: Checkpoint, dtype: DType) -> AssetComparison:
    """Compare the bundle's table with the checkpoint's, rounded to `dtype`.

    Raises:
        CheckpointError: the file is no safetensors file.
    """
    tables = list(read_header(bundle / EMBEDDING_FILE).values())
    stored = checkpoint.embedding
    kind = f"{list(stored.shape)} in {dtype}"
    kinds = [f"{list(x.shape)} in {x.dtype}" for x in tables]
    if kinds != [kind]:
        return differs(NAME, " and ".join(kinds) or "nothing", kind)
    bits = _BITS[dtype.bits]
    rows, wrong, first = stored.shape[0], 0, None
    block = max(1, BLOCK_BYTES * rows // max(1, stored.nbytes))
    found, expected = tables[0].as_tensor(), stored.as_tensor()
    for start in range(0, rows, block):
        one = found[start : start + block]
        other = expected[start : start + block].to(dtype.torch)
        unequal = one.view(bits) != other.view(bits)
        if first is None and unequal.any():
            row, column = (int(x[0]) for x in torch.nonzero(unequal, as_tuple=True))
            first = start + row, column, float(one[row, column]), float(other[row, column])
        wrong += int(unequal.any(dim=1).sum())
    if first is None:
        return agreed(NAME, kind, f"all {rows} rows, bit for bit")
    row, column, value, true_value = first
    return differs(
        NAME,
        f"{value:.9g} in row {row}, channel {column}",
        f"{true_value:.9g}",
        f"{wrong} of {rows} rows differ",
    )
