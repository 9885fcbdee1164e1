# SPDX-License-Identifier: Apache-2.0
"""Intermediate tensors of one of PyTorch's decoder layers, by hooks.

Axes: S tokens, E channels, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tc_export.model.decoder import Rotary

ATTENTION = "self_attn.block_causal_attention"
QUERIES, KEYS = "queries", "keys"
VALUES = "values"
RESULT = "x + mlp"

_RENAMED = {
    "input of post_attention_layernorm": "x + self_attn",
    "input of mlp.down_proj": "silu(gate_proj) * up_proj",
    "input of self_attn.o_proj": f"output of {ATTENTION}",
}
"""Inputs of modules that have a name of their own."""


def before_rotation(what: str) -> str:
    """Queries or keys as they go into the rotation."""
    return f"{what} before self_attn.dual_rope"


def after_rotation(what: str) -> str:
    """Queries or keys as they leave the rotation."""
    return f"{what} after self_attn.dual_rope"


def into_attention(what: str) -> str:
    """What the attention is given."""
    return f"{what} into {ATTENTION}"


def cache_rows(what: str) -> str:
    """Keys or values as they stand in the cache."""
    return f"{what} in the cache"


def input_of(module: str) -> str:
    """What goes into a module."""
    name = f"input of {module}"
    return _RENAMED.get(name, name)


class Recorder:
    """Hangs hooks on one layer, and keeps what went through, call by call."""

    def __init__(self, head_dim: int) -> None:
        self._head_dim = head_dim
        self._kept: dict[str, list[Tensor]] = {}

    def watch(self, title: str, layer: nn.Module) -> None:
        """Keep the inputs and outputs of the layer's smallest modules, and of its rotations."""
        for name, module in layer.named_modules():
            if name == "self_attn":
                module.register_forward_pre_hook(self._watch_rotations)
            elif name and next(module.children(), None) is None:
                module.register_forward_hook(self._watch_module(name))
        layer.register_forward_hook(lambda _, given, made: self._keep(RESULT, made[0]))

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that was kept, as [S, E] or [S, H, D], by name."""
        found = {}
        for name, calls in self._kept.items():
            whole = torch.cat(calls)
            wide = whole.float() if whole.dtype == torch.bfloat16 else whole
            found[name] = wide.numpy()
        attended = found.get(input_of("self_attn.o_proj"))
        if attended is not None:
            found[input_of("self_attn.o_proj")] = self._by_heads(attended)
        for what in (QUERIES, KEYS):
            found[into_attention(what)] = found[after_rotation(what)]
        found[into_attention(VALUES)] = self._by_heads(found["self_attn.v_proj"])
        return found

    def _by_heads(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, self._head_dim)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self._kept.setdefault(name, []).append(tensor[0].clone())

    def _watch_module(self, name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            self._keep(input_of(name), given[0])
            self._keep(name, made)

        return hook

    def _watch_rotations(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, rotary, *rest = given
        return (x, _WatchedRotary(rotary, self), *rest)

    def keep_rotation(self, what: str, before: Tensor, after: Tensor) -> None:
        """Keep a rotation of queries or keys [1, H, S, D]."""
        self._keep(before_rotation(what), before.transpose(1, 2))
        self._keep(after_rotation(what), after.transpose(1, 2))


class _WatchedRotary:
    """The rotation of one call; the layer rotates queries first, and then keys."""

    def __init__(self, rotary: Rotary, recorder: Recorder) -> None:
        self.position_ids = rotary.position_ids
        self._rotary = rotary
        self._recorder = recorder
        self._names = iter((QUERIES, KEYS))

    def __call__(self, x: Tensor) -> Tensor:
        out = self._rotary(x)
        self._recorder.keep_rotation(next(self._names), x, out)
        return out
