# SPDX-License-Identifier: Apache-2.0
"""The processor of a shared library, from headers written by hand and from this Python's own."""

from __future__ import annotations

import platform
import struct
import sys
from pathlib import Path

import pytest

from tc_export.native.elf import HEADER_BYTES, architecture


def header(machine: int, *, magic: bytes = b"\x7fELF", kind: int = 3) -> bytes:
    """The whole header of a 64-bit little-endian ELF file, by elf.h."""
    ident = magic + bytes([2, 1, 1]) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 0, 64, 0, 0)


@pytest.mark.parametrize(
    ("machine", "name"),
    [(62, "x86_64"), (183, "aarch64"), (243, "ELF machine 243"), (0x3E00, "ELF machine 15872")],
)
def test_the_processor_is_named(machine: int, name: str) -> None:
    assert architecture(header(machine)) == name
    assert architecture(header(machine)[:HEADER_BYTES]) == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        header(62)[: HEADER_BYTES - 1],
        header(62, magic=b"\x7fELG"),
        header(62, magic=b"MZ\x90\x00"),
        b"#!/bin/sh\nexec something\n",
        bytes(64),
    ],
)
def test_what_is_no_elf_file_has_none(content: bytes) -> None:
    assert architecture(content) is None


def test_this_python_is_for_this_machine() -> None:
    with Path(sys.executable).open("rb") as file:
        assert architecture(file.read(HEADER_BYTES)) == platform.machine()
