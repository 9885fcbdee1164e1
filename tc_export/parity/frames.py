# SPDX-License-Identifier: Apache-2.0
"""Frames on their way through the vision tower: each once, and so many at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tc_export.contracts.graph_io import FRAMES_A_CALL


def distinct(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, list[list[int]]]:
    """Each frame of the clips once, and where each clip's frames are among these."""
    found: dict[bytes, int] = {}
    frames: list[np.ndarray] = []
    places: list[list[int]] = []
    for clip in clips:
        places.append([])
        for frame in clip:
            key = hashlib.sha256(frame.tobytes()).digest()
            if key not in found:
                found[key] = len(frames)
                frames.append(frame)
            places[-1].append(found[key])
    return np.stack(frames), places


def by_frames(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `function` to so many frames at a time as the vision engine takes."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(x), FRAMES_A_CALL):
            yield function(x[start : start + FRAMES_A_CALL])

    return torch.cat(list(parts()))
