# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of a comparison, asked once: it is the same whatever fault is planted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.noise import Draw
from tc_export.parity.random_cache import RandomCache
from tc_export.parity.sequences import TokenSequence

ASKED = (
    "features",
    "feature_draws",
    "hidden_draws",
    "layer",
    "head",
    "caches",
    "logits_and_answers",
)
ASKED_IN_TURN = ("logit_draws",)
_NO_STATE = ("checkpoint", "config", "_advance", "_parts")  # `name` says what these hold


def remember_pytorch() -> None:
    """Let every `LayerwiseModel` of this process remember what it was asked."""
    known: dict[object, Any] = {}
    for name in ASKED:
        setattr(LayerwiseModel, name, _remembering(name, getattr(LayerwiseModel, name), known))
    for name in ASKED_IN_TURN:
        ask = getattr(LayerwiseModel, name)
        setattr(LayerwiseModel, name, _remembering(name, _listing(ask), known))


def _listing(ask: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **more: list(ask(*given, **more))


def _remembering(
    name: str, ask: Callable[..., Any], known: dict[object, Any]
) -> Callable[..., Any]:
    def asked(self: LayerwiseModel, *given: Any, **more: Any) -> Any:
        if any(callable(x) for x in (*given, *more.values())):
            return ask(self, *given, **more)  # somebody watches it work
        state = {key: x for key, x in vars(self).items() if key not in _NO_STATE}
        key = type(self), name, _digest((state, given, more))
        if key not in known:
            known[key] = ask(self, *given, **more)
        return known[key]

    return asked


def _digest(value: Any) -> str:
    """One string for equal questions."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(
            f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        )
    elif isinstance(value, torch.Tensor):
        _feed(digest, value.float().numpy())
    elif isinstance(value, dict):
        for key in sorted(value):
            digest.update(str(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for part in value:
            _feed(digest, part)
    elif isinstance(value, TokenSequence):
        _feed(digest, [value.embeds, vars(value.layout), value.logits_indices, value.past])
    elif isinstance(value, RandomCache):
        _feed(digest, [value.computed, str(value.dtype), value.rows, value.seed])
    elif isinstance(value, Draw):
        digest.update(f"draw {value.number} {value.dithers}".encode())
    else:
        digest.update(repr(value).encode())
