# SPDX-License-Identifier: Apache-2.0
"""What a session holds in its cache: the prompt up to the video, and a clip that grows.

Axes: S tokens, m tokens of a frame, E channels of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Clip, Text


class Watched:
    """Frames that are in the cache, in the order of time.

    Attributes:
        sequence: the cache, which ends with the last frame; what is written behind it is forgotten
            by the next frame.
        forgotten: how many frames were let go of.
    """

    def __init__(
        self, sequence: DecoderSession, head_SE: NDArray[np.float32], *, forgets: bool
    ) -> None:
        """Read the head of the prompt, which may be empty, into an empty sequence.

        Only where it `forgets` are features held, for `keep`.
        """
        self.sequence = sequence
        self.forgotten = 0
        self._forgets = forgets
        if len(head_SE):
            sequence.prefill(head_SE, [Text(len(head_SE))])
        self._after_head = sequence.cursor
        self._times_s: list[float] = []
        self._features: list[NDArray[np.float32]] = []

    @property
    def times_s(self) -> tuple[float, ...]:
        """When the frames were taken."""
        return tuple(self._times_s)

    def append(self, features_mE: NDArray[np.float32], time_s: float) -> None:
        """Read a frame. A call that fails changes nothing.

        Raises:
            UsageError: the cache has no room for it.
        """
        self._read([features_mE], [time_s])

    def keep(self, kept: Sequence[int]) -> None:
        """Forget all frames but these, by their places from 0 on, and read these again.

        They are then what they would be had there never been others: their positions follow on
        each other, so that positions stay where they are however long a stream is. A call that
        fails leaves no frame.
        """
        features = [self._features[place] for place in kept]
        times_s = [self._times_s[place] for place in kept]
        self.forgotten += len(self._times_s) - len(times_s)
        self._features, self._times_s = [], []
        self.sequence.rewind(self._after_head)
        if times_s:
            self._read(features, times_s)

    def _read(self, features: Sequence[NDArray[np.float32]], times_s: Sequence[float]) -> None:
        """Prefill frames: as a clip that begins, or as one that continues."""
        clip = Clip(len(features), len(features[0]), continues=bool(self._times_s))
        self.sequence.prefill(np.concatenate(features), [clip])
        self._times_s += times_s
        if self._forgets:
            self._features += features
