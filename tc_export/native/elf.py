# SPDX-License-Identifier: Apache-2.0
"""Which processor a shared library is for, read from its ELF header and never by opening it."""

from __future__ import annotations

HEADER_BYTES = 20
"""As much of a file as `architecture` looks at."""

_MAGIC = b"\x7fELF"
_MACHINE = slice(18, 20)  # e_machine of elf.h, little-endian on the machines that we build for
_MACHINES = {62: "x86_64", 183: "aarch64"}


def architecture(header: bytes) -> str | None:
    """The processor's name, as `uname -m` and `platform.machine` have it; None for no ELF file."""
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    number = int.from_bytes(header[_MACHINE], "little")
    return _MACHINES.get(number, f"ELF machine {number}")
