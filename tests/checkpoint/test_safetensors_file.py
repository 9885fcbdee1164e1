# SPDX-License-Identifier: Apache-2.0
"""The header parser: against the safetensors library, and against damaged and random files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tc_export.checkpoint.safetensors_file import read_header
from tc_export.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(file: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return file


def test_places_and_values_equal_the_library(tmp_path: Path) -> None:
    tensors = {
        "double": torch.randn(3, 5, dtype=torch.float64),
        "single": torch.randn(7, 2),
        "half": torch.randn(3, dtype=torch.float16),
        "brain": torch.randn(2, 3, 4, dtype=torch.bfloat16),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
        "index": torch.arange(5),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0, 4),
    }
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    locations = read_header(file)
    assert locations.keys() == tensors.keys()
    for name, tensor in tensors.items():
        location = locations[name]
        in_file = file.read_bytes()[location.offset : location.offset + location.nbytes]
        assert in_file == tensor.flatten().view(torch.uint8).numpy().tobytes(), name
        assert location.as_bytes().tobytes() == in_file
        loaded = location.as_tensor()
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
        assert loaded.flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))


@pytest.mark.parametrize("padding", range(4))
def test_a_tensor_off_its_alignment_is_read(tmp_path: Path, padding: int) -> None:
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "weight": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    raw = json.dumps(header).encode() + b" " * padding
    values = np.array([1.5, -2.0], dtype=np.float32)
    loaded = read_header(write(tmp_path / "a", raw, b"abc" + values.tobytes()))[
        "weight"
    ].as_tensor()
    assert loaded.tolist() == [1.5, -2.0]
    assert loaded.data_ptr() % 4 == 0


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(4)}, file)
    before = file.read_bytes()
    location = read_header(file)["weight"]
    location.as_tensor().mul_(3)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        location.as_bytes()[0] = 1


def test_a_file_that_shrank_after_it_was_opened_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(4)}, file)
    location = read_header(file)["weight"]
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="weight can no longer be read"):
        location.as_tensor()


DAMAGED = {
    "truncated": (
        {"a": {**ENTRY, "shape": [4], "data_offsets": [0, 16]}},
        "truncated: its header describes .* it has",
    ),
    "left over": ({"a": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}}, "belong to no tensor"),
    "overlap": (
        {"a": ENTRY, "b": {**ENTRY, "shape": [1], "data_offsets": [4, 8]}},
        "'b' overlaps with 'a'",
    ),
    "gap": ({"a": {**ENTRY, "shape": [1], "data_offsets": [4, 8]}}, "'a' leaves a gap after the h"),
    "size": ({"a": {**ENTRY, "shape": [3]}}, r"'a' of shape \[3\] .* needs 12 bytes.* hold 8"),
    "backwards": ({"a": {**ENTRY, "data_offsets": [8, 0]}}, "needs 8 bytes"),
    "dtype": ({"a": {**ENTRY, "dtype": "F7"}}, "'a' has the unknown dtype 'F7'; known: F64"),
    "negative": ({"a": {**ENTRY, "shape": [-2]}}, "'a': shape.0 .* greater"),
    "fraction": ({"a": {**ENTRY, "shape": [2.0]}}, "'a': shape.0 .*integer"),
    "no entry": ({"a": 5}, "'a'"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "'a': data_offsets .*required"),
    "duplicate": (
        b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2),
        "same name twice: a",
    ),
    "bad JSON": (b'{"a": ', "is not JSON"),
    "bad text": (b"\xff\xfe", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "list": (b"[]", "not a JSON object"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    header, message = DAMAGED[case]
    file = write(tmp_path / "weights.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"\x10", "it has 1 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header claims 100 bytes, but the whole file has 10"),
        (struct.pack("<Q", 2**63), "at most 100000000"),
    ],
)
def test_a_bad_start_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


@RELAXED
@given(content=st.binary(max_size=64))
def test_random_bytes_give_an_error_of_ours_or_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    accepts_only_what_the_library_accepts(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "Q4"]) | json_values,
        "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(0, 12), st.integers(0, 12)) | json_values,
    }
)


@RELAXED
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values),
    data=st.binary(max_size=12),
)
def test_random_headers_give_an_error_of_ours_or_nothing(
    tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    accepts_only_what_the_library_accepts(write(tmp_path / "a", header, data))


@RELAXED
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_one_changed_byte_gives_an_error_of_ours_or_nothing(
    tmp_path: Path, position: int, value: int
) -> None:
    file = tmp_path / "a"
    save_file({"x": torch.ones(3), "y": torch.zeros(2, 2, dtype=torch.float16)}, file)
    content = bytearray(file.read_bytes())
    content[position % len(content)] = value
    file.write_bytes(content)
    accepts_only_what_the_library_accepts(file)


def accepts_only_what_the_library_accepts(file: Path) -> None:
    try:
        locations = read_header(file)
    except CheckpointError:
        return
    try:
        with safe_open(file, "pt") as reference:
            names = list(reference.keys())
            shapes = {name: tuple(reference.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise AssertionError(f"the library refuses {file.read_bytes()!r}") from error
    assert {name: location.shape for name, location in locations.items()} == shapes
    for location in locations.values():
        location.as_tensor()
