# SPDX-License-Identifier: Apache-2.0
"""Sequences that an engine runs as one batch, and alone: what it says of each must be the same.

The first call has the first call of every sequence, and so on; the shorter ones are padded on the
right, and a sequence that has ended is padding alone. So sequences stand at different places all
the way, and one may decode while another is still prefilled.

Axes: B sequences, S tokens of a call, L logits wanted of it, C cache rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    KV_END,
    LOGITS_INDICES,
    POSITION_IDS,
    TEMPORAL_IDS,
)
from tc_export.contracts.ops import PADDING
from tc_export.model.positions import TEXT
from tc_export.parity.tensors.sides import Calls, EngineCalls, Feed

_FILL = {
    INPUTS_EMBEDS: 1,  # a padded token is no zero: were it seen, it would be more than a lost share
    POSITION_IDS: PADDING,
    TEMPORAL_IDS: PADDING,
    KV_END: 0,
    LOGITS_INDICES: 0,
    KEY_FRAME_IDS: TEXT,
}


def batch_of(members: Sequence[Calls]) -> EngineCalls:
    """The calls of all members at once, in a cache with a spare row, which padding goes to."""
    rows = max(x.rows for x in members) + 1
    steps = range(max(len(x.feeds) for x in members))
    return EngineCalls(
        feeds=[_side_by_side([_feed(x, step) for x in members], rows) for step in steps],
        rows=rows,
        pasts=tuple(x.sequence.past for x in members),
    )


def logits_of_member(
    batch_logits: Sequence[np.ndarray], members: Sequence[Calls], index: int
) -> list[np.ndarray]:
    """What a batch's logits [B * L, V] of each call say of one member: [wanted, V] of its calls."""
    wanted = members[index].logits_a_call
    return [
        logits.reshape(len(members), -1, logits.shape[-1])[index, :count]
        for logits, count in zip(batch_logits, wanted, strict=False)
    ]


def _feed(calls: Calls, step: int) -> Feed:
    """A call of one sequence; without any token where the sequence has ended."""
    if step < len(calls.feeds):
        return calls.feeds[step]
    return {name: values[:, :0] for name, values in calls.feeds[-1].items()}


def _side_by_side(feeds: Sequence[Feed], rows: int) -> Feed:
    """One feed [B, …] of several [1, …], each padded along its second axis."""
    together = {}
    for name, fill in _FILL.items():
        if name not in feeds[0]:
            continue
        width = rows if name == KEY_FRAME_IDS else max(feed[name].shape[1] for feed in feeds)
        padded = [
            np.pad(
                feed[name],
                [(0, 0), (0, width - feed[name].shape[1])] + [(0, 0)] * (feed[name].ndim - 2),
                constant_values=fill,
            )
            for feed in feeds
        ]
        together[name] = np.concatenate(padded)
    return together
