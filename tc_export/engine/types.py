# SPDX-License-Identifier: Apache-2.0
"""Element types of engines in NumPy's terms, with bfloat16, which NumPy itself lacks."""

from __future__ import annotations

import ml_dtypes
import numpy as np

BFLOAT16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)


def hand_out(array: np.ndarray) -> np.ndarray:
    """What callers get: bfloat16 as float32, which holds it exactly and can be computed with."""
    return array.astype(np.float32) if array.dtype == BFLOAT16 else array
