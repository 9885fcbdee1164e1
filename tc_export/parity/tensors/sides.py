# SPDX-License-Identifier: Apache-2.0
"""Who is compared: the PyTorch model, and engines that are open or that are opened in parts.

Every side answers the same two questions, for all scenarios at once: what are the features of these
clips, and what are the logits of these calls?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tc_export.contracts.graph_io import (
    FRAMES_A_CALL,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    PIXEL_VALUES,
    VISUAL_FEATURES,
)
from tc_export.engine.batch import takes_batches
from tc_export.engine.interface import Engine
from tc_export.engine.kv_cache import KvCache
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.random_cache import RandomCache
from tc_export.parity.sequences import TokenSequence

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EngineCalls:
    """What an engine is called with, call after call: one sequence, or a batch of several.

    `feeds` hold the embeddings rounded to the graph's format. `rows` is the size of the cache, and
    `pasts` say what it holds before the first call, for each sequence.
    """

    feeds: list[Feed]
    rows: int
    pasts: tuple[RandomCache | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class Calls(EngineCalls):
    """One sequence: prefill chunks, then decode steps.

    `sequence` is the same at once, its wanted tokens those of all feeds in order.
    """

    sequence: TokenSequence

    @property
    def logits_a_call(self) -> list[int]:
        """How many logits each call gives."""
        return [feed[LOGITS_INDICES].shape[1] for feed in self.feeds]

    def by_call(self, logits: np.ndarray) -> list[np.ndarray]:
        """Logits [L, V] of the whole sequence, cut into those of each call."""
        return np.split(logits, np.cumsum(self.logits_a_call)[:-1])


class Side(Protocol):
    """An implementation of the model."""

    name: str

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Visual features [F, m, E] of each clip's pixels [F, 3, size, size]."""

    def logits(self, calls: Sequence[Calls]) -> list[list[np.ndarray]]:
        """For each sequence, the logits [wanted, V] of each of its calls."""


class JudgedSide(Protocol):
    """What is judged. It says in which types its graphs are fed, and whether it takes batches."""

    name: str
    pixel_type: np.dtype[np.generic]
    embeds_type: np.dtype[np.generic]
    takes_batches: bool

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Side.features`."""

    def logits(self, calls: Sequence[EngineCalls]) -> list[list[np.ndarray]]:
        """See `Side.logits`; of a batch [B * wanted, V], sequence after sequence."""


@dataclass(frozen=True, kw_only=True)
class TorchSide:
    """PyTorch, layer by layer; the two graphs may have two formats."""

    vision: LayerwiseModel
    decoder: LayerwiseModel

    @property
    def name(self) -> str:
        """Version and formats."""
        if self.vision is self.decoder:
            return self.decoder.name
        return f"{self.vision.name}; {self.decoder.name}"

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Side.features`."""
        return self.vision.features(clips)

    def logits(self, calls: Sequence[Calls]) -> list[list[np.ndarray]]:
        """See `Side.logits`."""
        whole = self.decoder.logits([x.sequence for x in calls])
        return [x.by_call(logits) for logits, x in zip(whole, calls, strict=True)]


class OpenSide:
    """Two engines that are open."""

    def __init__(self, name: str, vision: Engine, decoder: Engine) -> None:
        self.name = name
        self._vision = vision
        self._decoder = decoder
        self.pixel_type = vision.inputs[PIXEL_VALUES].dtype
        self.embeds_type = decoder.inputs[INPUTS_EMBEDS].dtype
        self.takes_batches = takes_batches(decoder)

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Side.features`."""
        return features_of(self._vision, clips)

    def logits(self, calls: Sequence[EngineCalls]) -> list[list[np.ndarray]]:
        """See `JudgedSide.logits`."""
        return [self._logits_of(x) for x in calls]

    def _logits_of(self, calls: EngineCalls) -> list[np.ndarray]:
        cache = cache_for(self._decoder, calls)
        found = [self._decoder.run(feed, cache)[LOGITS] for feed in calls.feeds]
        return [logits.reshape(-1, logits.shape[-1]) for logits in found]


def cache_for(engine: Engine, calls: EngineCalls) -> KvCache:
    """A cache of an engine, or of a part of a decoder, that holds what it should before a call."""
    cache = engine.new_cache(calls.rows, len(calls.pasts))
    most = max(0 if past is None else past.rows for past in calls.pasts)
    for name, buffer in cache.buffers.items() if most else ():
        layer, part = name.split(".")
        _, heads, _, *row = buffer.shape
        values = np.zeros((len(calls.pasts), heads, most, *row), np.float32)
        for sequence, past in zip(values, calls.pasts, strict=True):
            if past is not None:
                sequence[:, : past.rows] = past.draw(int(layer), part)
        cache.write(name, values)
    return cache


def features_of(vision: Engine, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Visual features of each clip, so many frames a call as an engine takes."""
    return [
        np.concatenate(
            [
                vision.run({PIXEL_VALUES: clip[start : start + FRAMES_A_CALL]})[VISUAL_FEATURES]
                for start in range(0, len(clip), FRAMES_A_CALL)
            ]
        )
        for clip in clips
    ]
