# SPDX-License-Identifier: Apache-2.0
"""Channels of a decoder layer made larger in one place and smaller in another.

The columns of matrices that share their inputs are multiplied by s, and what makes these inputs, a
norm or a matrix row by row, is divided by it: the model computes what it did, and rounding costs
something else. What s is best is for a method to say: `awq` and `smooth`.

Axes: T tokens, N output channels, K input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tc_export.quantize.grouped import Grouped


@dataclass(frozen=True)
class Pair:
    """Matrices that share their inputs, and what makes these: a norm, or a matrix row by row."""

    matrices: tuple[str, ...]
    before: str


PAIRS = (
    Pair(("mlp.down_proj",), "mlp.up_proj"),
    Pair(("self_attn.o_proj",), "self_attn.v_proj"),
    Pair(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Pair(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
)
"""Of a decoder layer, those that only shrink rows of others first."""

ROWS = 512
"""Tokens that a choice is judged by."""

Rounding = Callable[[str, Tensor], Grouped | None]
"""Rounds a weight [N, K] of a name; None where it stays as it is."""

Factors = Callable[[Sequence[tuple[str, Tensor]], Tensor], Tensor]
"""Factors [K] for the columns of these weights [N, K], by their names, and their inputs [T, K]."""


@dataclass(frozen=True)
class Equalised:
    """The weights of a layer in float32, and what enters its matrices then [T, K], both by name."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]


def equalise(
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    is_rounded: Callable[[str], bool],
    factors: Factors,
) -> Equalised:
    """Change a decoder layer so that rounding costs less, and its results stay what they were.

    Args:
        weights: by their names in the layer, such as `mlp.up_proj.weight`.
        inputs: what enters each linear layer, [T, K], by its name.
        is_rounded: says of a weight's name whether it is going to be rounded; where no matrix of a
            pair is, nothing changes.
        factors: of a pair.
    """
    changed = Equalised({name: x.to(torch.float32) for name, x in weights.items()}, {**inputs})
    for pair in PAIRS:
        names = [f"{matrix}.weight" for matrix in pair.matrices]
        x_TK = inputs[pair.matrices[0]]
        if len(changed.weights[f"{pair.before}.weight"]) != x_TK.shape[1]:
            continue  # keys and values of fewer heads: a channel of theirs feeds several
        if not any(map(is_rounded, names)):
            continue
        s_K = factors([(name, changed.weights[name]) for name in names], x_TK)
        for name in names:
            changed.weights[name] = changed.weights[name] * s_K
        entering = x_TK / s_K
        changed.inputs.update(dict.fromkeys(pair.matrices, entering))
        _shrink(changed.weights, pair.before, s_K)
    return changed


def some_rows(x_TK: Tensor) -> Tensor:
    """At most `ROWS` of the rows, evenly spread."""
    return x_TK[torch.linspace(0, len(x_TK) - 1, min(ROWS, len(x_TK))).round().long()]


def least_error(
    candidates: Iterable[tuple[Tensor, Tensor]],
    matrices: Sequence[tuple[str, Tensor]],
    some_TK: Tensor,
    rounding: Rounding,
) -> Tensor:
    """The factors with which all products of a pair together err least, in the mean square.

    Args:
        candidates: factors [K] for columns, and what then enters the products [T, K].
        matrices: of the pair.
        some_TK: what enters them now.
        rounding: what is going to be done with a weight.
    """
    truths = [some_TK @ weight.T for _, weight in matrices]
    best, least = torch.ones_like(some_TK[0]), float("inf")
    for s_K, entering in candidates:
        error = 0.0
        for (name, weight), truth in zip(matrices, truths, strict=True):
            rounded = rounding(name, weight * s_K)
            if rounded is not None:
                found = entering @ rounded.widened().T
                error += float((found - truth).square().mean() / truth.square().mean())
        if error < least:
            best, least = s_K, error
    return best


def balanced(s_K: Tensor) -> Tensor:
    """Factors whose largest is as far above one as their smallest is below."""
    return s_K / (s_K.max() * s_K.min()).sqrt()


def _shrink(weights: dict[str, Tensor], before: str, s_K: Tensor) -> None:
    weight = weights[f"{before}.weight"]
    weights[f"{before}.weight"] = weight / (s_K if weight.ndim == 1 else s_K[:, None])
    if f"{before}.bias" in weights:
        weights[f"{before}.bias"] = weights[f"{before}.bias"] / s_K
