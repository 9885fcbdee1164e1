# SPDX-License-Identifier: Apache-2.0
"""What a session holds in its cache: the prompt up to the video, and a clip that grows.

Axes: S tokens, m tokens of a frame, E channels of the language model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Clip, Text


class Watched:
    """Frames that are in the cache, in the order of time.

    Each call changes all of this, or, where it fails, nothing.

    Attributes:
        sequence: the cache, which ends with the last frame; what is written behind it is forgotten
            by the next frame.
    """

    def __init__(self, sequence: DecoderSession, head_SE: NDArray[np.float32]) -> None:
        """Read the head of the prompt, which may be empty, into an empty sequence."""
        self.sequence = sequence
        if len(head_SE):
            sequence.prefill(head_SE, [Text(len(head_SE))])
        self._times_s: list[float] = []

    @property
    def times_s(self) -> tuple[float, ...]:
        """When the frames were taken."""
        return tuple(self._times_s)

    def append(self, features_mE: NDArray[np.float32], time_s: float) -> None:
        """Read a frame: as the first of the clip, or as one that continues it.

        Raises:
            UsageError: the cache has no room for it.
        """
        clip = Clip(1, len(features_mE), continues=bool(self._times_s))
        self.sequence.prefill(features_mE, [clip])
        self._times_s.append(time_s)
