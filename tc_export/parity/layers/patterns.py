# SPDX-License-Identifier: Apache-2.0
"""What kind of fault a wrong tensor shows: its name, and how it was told.

The first wrong tensor of a layer says which step is wrong. Each kind of step has patterns of its
own, and each is tested against the numbers: a mask is named only where other numbers of visible
rows give exactly what the graph gives, a position only where one shift explains every frequency.

Axes: S tokens, C channels, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tc_export.dtypes import DType, round_to
from tc_export.parity.layers.nodes import Seen
from tc_export.parity.layers.recorder import input_of

MASK = "mask"
TEMPORAL_POSITION = "temporal position"
GLOBAL_POSITION = "global position"
POSITION_OFFSET = "position offset"
ROPE_BASE = "rope base"
ROPE_FREQUENCIES = "rope frequencies"
ROTATION = "rotation"
WEIGHT = "weight"
BIAS = "bias"
HEADS = "heads"
ORDER = "channel order"
ROUNDING = "rounding"
CACHE_WRITE = "cache write"
NORM_EPSILON = "norm epsilon"
ATTENTION_SCALE = "attention scale"
ATTENTION_OUTPUT = "attention"
ACTIVATION = "activation"
SUM = "sum"
SELECTION = "patch selection"
POOLING = "pooling"
OVERFLOW = "overflow"
ACCUMULATED = "accumulated"
OTHER = "other"

EXPLAINED = 0.1
"""A pattern is named where it leaves no more than this share of the error unexplained."""


MOST = 0.99
"""Of numbers; near zero one may be off by more than its own rounding."""


@dataclass(frozen=True)
class Pattern:
    """A kind of fault, and how it shows."""

    name: str
    words: str


def is_explained(left: np.ndarray | float, error: np.ndarray | float) -> bool:
    """True where what a pattern leaves of an error is small."""
    return float(np.max(left)) <= EXPLAINED * float(np.max(error))


def rounding_pattern(seen: Seen, tensor: str) -> Pattern | None:
    """The right numbers, rounded to a shorter format than the graph's."""
    truth, engine = _flat(seen, tensor)
    for dtype in (DType.FLOAT16, DType.BFLOAT16):
        near = np.abs(engine - truth) <= dtype.epsilon * np.abs(truth) + _tiny(dtype)
        if near.mean() > MOST and (round_to(engine, dtype) == engine).all():
            return Pattern(ROUNDING, f"everywhere alike: rounded to {dtype}")
    return None


def _tiny(dtype: DType) -> float:
    """The smallest step of a format, where its numbers are no longer relative."""
    return float(np.nextafter(dtype.numpy.type(0), dtype.numpy.type(1)))


def linear_pattern(seen: Seen, tensor: str) -> Pattern:
    """A matrix product that is wrong though its input is right: its weight or its bias."""
    truth, engine = _flat(seen, tensor)
    error = np.abs(engine - truth)
    exchanged = exchanged_heads(seen, truth, engine)
    if exchanged:
        return Pattern(HEADS, f"everywhere alike: {exchanged}")
    if is_explained(np.abs(np.sort(engine, axis=1) - np.sort(truth, axis=1)), error):
        count = int((error.max(axis=0) > EXPLAINED * error.max()).sum())
        return Pattern(ORDER, f"everywhere alike: {count} channels stand in other places")
    factor = float((engine * truth).sum() / (truth * truth).sum())
    if is_explained(np.abs(engine - factor * truth), error):
        return Pattern(WEIGHT, f"everywhere alike: {factor:.4g} times what it should be")
    offset = np.median(engine - truth, axis=0)
    if is_explained(np.abs(engine - truth - offset), error):
        return Pattern(BIAS, "everywhere alike: the same is added to every token")
    channels = int((error.max(axis=0) > EXPLAINED * error.max()).sum())
    everywhere = "everywhere alike" if seen.wrong(tensor).mean() > 0.5 else "at some tokens"
    return Pattern(WEIGHT, f"{everywhere}: {channels} of {truth.shape[1]} channels")


def exchanged_heads(seen: Seen, truth: np.ndarray, engine: np.ndarray) -> str | None:
    """Which heads stand in each other's place, in words; None where none do."""
    size = seen.head_dim
    if truth.shape[1] % size:
        return None
    true, found = (x.reshape(len(x), -1, size) for x in (truth, engine))
    heads = true.shape[1]
    distance = np.array(
        [[np.abs(found[:, i] - true[:, j]).max() for j in range(heads)] for i in range(heads)]
    )
    best = distance.argmin(axis=1)
    moved = [i for i in range(heads) if best[i] != i]
    left = max((distance[i, best[i]] for i in range(heads)), default=0.0)
    if not moved or len(set(best)) < heads or not is_explained(left, np.abs(engine - truth)):
        return None
    return ", ".join(f"head {i} holds head {best[i]}" for i in moved)


def norm_pattern(seen: Seen, tensor: str, *, centred: bool = False) -> Pattern:
    """A norm that is wrong though its input is right: root mean square, or centred with a bias."""
    truth, engine = _flat(seen, tensor)
    x = seen.truth[input_of(tensor)].astype(np.float64)
    right = seen.config.text.rms_norm_eps
    if centred:
        right = seen.config.vision.layer_norm_eps
        x = x - x.mean(axis=1, keepdims=True)
        bias = _bias(truth, x / np.sqrt((x * x).mean(axis=1, keepdims=True) + right))
        truth, engine = truth - bias, engine - bias
    square = (x * x).mean(axis=1)
    ratio = (engine * truth).sum(axis=1) / np.maximum((truth * truth).sum(axis=1), 1e-300)
    if is_explained(np.abs(engine - ratio[:, None] * truth), np.abs(engine - truth)):
        clearest = int(np.abs(ratio - 1).argmax())
        epsilon = float((square[clearest] + right) / ratio[clearest] ** 2 - square[clearest])
        predicted = np.sqrt((square + right) / np.maximum(square + epsilon, 1e-300))
        if is_explained(np.abs(predicted - ratio), np.abs(ratio - 1)) and np.ptp(ratio) > 0:
            words = f"largest where the input is small: epsilon is {epsilon:.2g}, not {right:.2g}"
            return Pattern(NORM_EPSILON, words)
    return linear_pattern(seen, tensor)


def _bias(truth: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """What a norm adds to each channel [C], from its results and its normalised input [S, C]."""
    centre = normal - normal.mean(axis=0)
    power = np.maximum((centre * centre).sum(axis=0), 1e-300)
    weight = (centre * truth).sum(axis=0) / power
    found: np.ndarray = truth.mean(axis=0) - weight * normal.mean(axis=0)
    return found


def sum_pattern(seen: Seen, tensor: str, parts: tuple[str, str]) -> Pattern:
    """A residual sum that is wrong though both parts are right."""
    truth, engine = _flat(seen, tensor)
    for name in parts:
        part = seen.truth[name].reshape(truth.shape)
        if is_explained(np.abs(engine - (truth - part)), np.abs(engine - truth)):
            return Pattern(SUM, f"everywhere alike: {name} is not in the sum")
    return Pattern(SUM, f"{spell_share(seen, tensor)} of the tokens")


def activation_pattern(seen: Seen, tensor: str) -> Pattern:
    """The gated activation is wrong though both of its inputs are right."""
    return Pattern(ACTIVATION, f"{spell_share(seen, tensor)} of the tokens, both inputs right")


def spell_share(seen: Seen, tensor: str) -> str:
    """The share of tokens that are wrong."""
    return f"at {seen.wrong(tensor).mean():.0%}"


def _flat(seen: Seen, tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth and engine as [S, C] in float64."""
    truth, engine = (x[tensor].astype(np.float64) for x in (seen.truth, seen.engine))
    return truth.reshape(len(truth), -1), engine.reshape(len(truth), -1)
