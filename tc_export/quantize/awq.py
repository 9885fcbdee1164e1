# SPDX-License-Identifier: Apache-2.0
"""AWQ: channels that carry more are made larger before rounding, and what feeds them smaller.

What a matrix errs is what its rounding errs times what enters it. So the columns of channels that
are large on real inputs are multiplied by s before rounding, which makes their error s times
smaller, and the norm or the matrix that makes these channels is divided by s: the model computes
what it did. s is the mean size of a channel to a power from 0 to 1, by the least square error of
the products on the calibration's inputs. (Lin et al., "AWQ: Activation-aware Weight Quantization",
arXiv 2306.00978.)

Axes: T tokens, N output channels, K input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tc_export.quantize.grouped import Grouped

POWERS = tuple(step / 20 for step in range(20))
ROWS = 512
"""Tokens that a power is judged by."""

Rounding = Callable[[str, Tensor], Grouped | None]
"""Rounds a weight [N, K] of a name; None where it stays as it is."""


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


def equalise(
    weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], rounding: Rounding
) -> dict[str, Tensor]:
    """The weights of a decoder layer, changed so that rounding costs less.

    Args:
        weights: by their names in the layer, such as `mlp.up_proj.weight`.
        inputs: what enters each linear layer, [T, K], by its name.
        rounding: what is going to be done with a weight.
    """
    changed = {name: weight.to(torch.float32) for name, weight in weights.items()}
    for pair in PAIRS:
        names = [f"{matrix}.weight" for matrix in pair.matrices]
        before = changed[f"{pair.before}.weight"]
        x_TK = inputs[pair.matrices[0]]
        if len(before) != x_TK.shape[1]:
            continue  # keys and values of fewer heads: a channel of theirs feeds several
        if all(rounding(name, changed[name]) is None for name in names):
            continue
        s_K = _search([(name, changed[name]) for name in names], x_TK, rounding)
        for name in names:
            changed[name] = changed[name] * s_K
        _shrink(changed, pair.before, s_K)
    return changed


def _shrink(weights: dict[str, Tensor], before: str, s_K: Tensor) -> None:
    weight = weights[f"{before}.weight"]
    weights[f"{before}.weight"] = weight / (s_K if weight.ndim == 1 else s_K[:, None])
    if f"{before}.bias" in weights:
        weights[f"{before}.bias"] = weights[f"{before}.bias"] / s_K


def _search(matrices: list[tuple[str, Tensor]], x_TK: Tensor, rounding: Rounding) -> Tensor:
    """The factor [K] with which all of the matrices together err least."""
    size_K = x_TK.abs().mean(dim=0).clamp(min=1e-6)
    places = torch.linspace(0, len(x_TK) - 1, min(ROWS, len(x_TK))).round().long()
    some_TK = x_TK[places]
    truths = [some_TK @ weight.T for _, weight in matrices]
    best, least = torch.ones_like(size_K), float("inf")
    for power in POWERS:
        s_K = size_K**power
        s_K = s_K / (s_K.max() * s_K.min()).sqrt()
        error = 0.0
        for (name, weight), truth in zip(matrices, truths, strict=True):
            rounded = rounding(name, weight * s_K)
            if rounded is not None:
                found = (some_TK / s_K) @ rounded.widened().T
                error += float((found - truth).square().mean() / truth.square().mean())
        if error < least:
            best, least = s_K, error
    return best
