# SPDX-License-Identifier: Apache-2.0
"""The table of embeddings: any bit of any row is seen, and its place is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.reader import EMBEDDING
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.graph.export import export_embedding
from tc_export.parity.assets import embedding
from tc_export.parity.assets.embedding import compare_embedding
from tests.exported import Exported

FORMATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16]


def written(exported: Exported, folder: Path, dtype: DType) -> torch.Tensor:
    """Write the table, and return it."""
    export_embedding(exported.checkpoint, dtype, folder / EMBEDDING_FILE)
    return load_file(folder / EMBEDDING_FILE)[EMBEDDING].clone()


def rewrite(folder: Path, table: torch.Tensor) -> None:
    save_file({EMBEDDING: table}, folder / EMBEDDING_FILE)


@pytest.fixture(params=[1, 700, embedding.BLOCK_BYTES])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, a few, and all at once."""
    monkeypatch.setattr(embedding, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_right_table_passes_in_every_format(
    exported: Exported, tmp_path: Path, dtype: DType
) -> None:
    table = written(exported, tmp_path, dtype)
    found = compare_embedding(tmp_path, exported.checkpoint, dtype)
    assert found.passed
    assert found.note == f"all {len(table)} rows, bit for bit"


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("row", [0, 37, -1])
def test_the_last_bit_of_a_value_is_seen_and_named(
    exported: Exported, tmp_path: Path, dtype: DType, row: int
) -> None:
    table = written(exported, tmp_path, dtype)
    row %= len(table)
    bits = table.view(torch.int32 if dtype is DType.FLOAT32 else torch.int16)
    right = float(table[row, 5])
    bits[row, 5] ^= 1
    rewrite(tmp_path, table)
    found = compare_embedding(tmp_path, exported.checkpoint, dtype)
    assert not found.passed
    assert found.found == f"{float(table[row, 5]):.9g} in row {row}, channel 5"
    assert found.expected == f"{right:.9g}"
    assert found.note == f"1 of {len(table)} rows differ"


def test_rows_that_changed_places_are_counted(exported: Exported, tmp_path: Path) -> None:
    table = written(exported, tmp_path, DType.FLOAT16)
    table[[3, 90]] = table[[90, 3]]
    rewrite(tmp_path, table)
    found = compare_embedding(tmp_path, exported.checkpoint, DType.FLOAT16)
    assert "row 3, channel 0" in found.found
    assert found.note == f"2 of {len(table)} rows differ"


def test_another_format_or_shape_is_named(exported: Exported, tmp_path: Path) -> None:
    table = written(exported, tmp_path, DType.FLOAT32)
    found = compare_embedding(tmp_path, exported.checkpoint, DType.FLOAT16)
    assert (found.passed, found.found) == (False, f"{list(table.shape)} in float32")
    assert found.expected == f"{list(table.shape)} in float16"
    rewrite(tmp_path, table[:-1].clone())
    found = compare_embedding(tmp_path, exported.checkpoint, DType.FLOAT32)
    assert found.found == f"[{len(table) - 1}, {table.shape[1]}] in float32"
    save_file({}, tmp_path / EMBEDDING_FILE)
    assert compare_embedding(tmp_path, exported.checkpoint, DType.FLOAT32).found == "nothing"


def test_a_file_that_is_none_is_bad_input(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / EMBEDDING_FILE).write_bytes(b"no table")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        compare_embedding(tmp_path, exported.checkpoint, DType.FLOAT32)


def test_the_rounding_is_numpys_too(exported: Exported, tmp_path: Path) -> None:
    """An independent way to the same bits."""
    for dtype in FORMATS:
        table = written(exported, tmp_path, dtype)
        stored = exported.checkpoint.tensors[EMBEDDING].as_array()
        expected = stored.astype(dtype.numpy).astype(np.float32)
        np.testing.assert_array_equal(table.float().numpy(), expected)
