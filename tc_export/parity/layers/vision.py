# SPDX-License-Identifier: Apache-2.0
"""The vision graph as a whole, frame by frame.

Axes: F frames, m tokens a frame, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.contracts.graph_io import VISUAL_FEATURES
from tc_export.dtypes import round_to
from tc_export.parity.layers.cells import Cells
from tc_export.parity.layers.check import Judges, moved
from tc_export.parity.layers.sequences import LayerSequence
from tc_export.parity.tensors.sides import features_of


@dataclass(frozen=True, kw_only=True)
class VisionJudged:
    """The cells of each arithmetic, and the truth's features [F, m, E] of each sequence."""

    cells: list[Cells]
    features: list[np.ndarray]


def judge_vision(
    judges: Judges, sequences: Sequence[LayerSequence], places: Sequence[str]
) -> VisionJudged:
    """Compare the visual features of all frames."""
    clips = [round_to(x.pixel_values, judges.format) for x in sequences]
    truth = judges.rounded.features(clips)
    judged = []
    for arithmetic in judges.arithmetics:
        cells = Cells(1, places, str(arithmetic.dtype))
        shaken = [moved(x, arithmetic.dtype, seed) for seed, x in enumerate(clips)]
        draws = [arithmetic.model.features(clips), arithmetic.model.features(shaken)]
        engine = arithmetic.opener.open()
        pixel_type = next(iter(engine.inputs.values())).dtype
        found = features_of(engine, [x.astype(pixel_type) for x in clips])
        for index, features in enumerate(truth):
            labels = [f"frame {frame + 1}" for frame in range(len(features))]
            noise = [draw[index] for draw in draws]
            cells.add(VISUAL_FEATURES, 0, labels, features, noise, (found[index],))
        judged.append(cells)
    return VisionJudged(cells=judged, features=judges.truth.features(clips))


def embedded(
    judges: Judges, sequences: Sequence[LayerSequence], features: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Embeddings [S, E] of each sequence, with the truth's features at visual places."""
    found = []
    for sequence, x in zip(sequences, features, strict=True):
        embeds = judges.truth.embed(np.maximum(sequence.token_ids, 0))
        embeds[sequence.token_ids < 0] = x.reshape(-1, x.shape[-1])
        found.append(embeds)
    return found
