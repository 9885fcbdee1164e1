# SPDX-License-Identifier: Apache-2.0
"""The rows of an embedding table, of every type that a bundle may have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tc_export.errors import BundleError, CheckpointError
from tc_export.runtime.embedding import EmbeddingTable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_what_pytorch_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    table = torch.randn(11, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"embedding": table}, tmp_path / "embedding.safetensors")
    ids = np.array([3, 0, 10, 3])
    rows = EmbeddingTable(tmp_path / "embedding.safetensors")(ids)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[torch.from_numpy(ids)].to(torch.float32).numpy())
    rows[:] = 0  # a copy: writing to it changes neither the table nor the file
    assert EmbeddingTable(tmp_path / "embedding.safetensors")(ids).any()


def test_a_table_off_its_alignment_can_be_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = json.dumps({"e": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * ((1 - len(header)) % 8)
    assert (8 + len(header)) % 4
    path = tmp_path / "embedding.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    np.testing.assert_array_equal(EmbeddingTable(path)(np.array([1, 0])), values[::-1])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "embedding.safetensors"
    for tensors in ({}, {"a": torch.ones(3)}, {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}):
        save_file(tensors, path)
        with pytest.raises(BundleError, match="one table of embeddings"):
            EmbeddingTable(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        EmbeddingTable(path)
