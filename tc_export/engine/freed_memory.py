# SPDX-License-Identifier: Apache-2.0
"""While weights are loaded, memory that is freed goes back to the system at once.

Loading frees as much as it keeps: a matrix of few bits is there as it is stored, then as its
operator wants it, then packed. glibc maps large blocks by themselves, and unmaps them when they are
freed; but each time it does it takes the next larger ones, up to 32 MiB, from its heap instead,
where what is freed among what stays is kept by the process. Measured with ONNX Runtime 1.31 and
matrices of 4096 x 4096 in four bits: 2.4 times their bytes in the end, and with `given_back` 1.02
(docs/adding-a-target.md).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of <malloc.h>
_SMALL, _USUAL = 1 << 20, 32 << 20
"""From which size blocks are mapped by themselves: while loading, and where glibc itself ends."""


@contextmanager
def given_back() -> Iterator[None]:
    """Map blocks from 1 MiB on by themselves; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        # A value once set is glibc's to change no more: so it gets those that it would come to.
        mallopt(_MMAP_THRESHOLD, _USUAL)
        mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
