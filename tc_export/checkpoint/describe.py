# SPDX-License-Identifier: Apache-2.0
"""What a person wants to know of a checkpoint's weights, from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from tc_export.checkpoint.foreign import PackedWeight, Packing
from tc_export.checkpoint.quantized import QuantizedWeight, Weight, stored_parts
from tc_export.checkpoint.reader import Checkpoint
from tc_export.errors import CheckpointError


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The forms of its weights, and what a library that quantised them has stored; for JSON.

    A weight that is stored once and used twice, as a tied head is, counts once.
    """
    config = checkpoint.config
    stored = {x.name: x for x in checkpoint.tensors.values()}
    forms: dict[str, Counter[str]] = {}
    for weight in stored.values():
        sums = forms.setdefault(_form(weight), Counter())
        nbytes = sum(part.nbytes for _, part in stored_parts(weight.name, weight))
        sums.update(count=1, numbers=math.prod(weight.shape), bytes=nbytes)
    packed = [x for x in stored.values() if isinstance(x, PackedWeight)]
    return {
        "checkpoint": str(checkpoint.folder),
        "family": str(config.family),
        "weights": {form: dict(sums) for form, sums in sorted(forms.items())},
        "quantised": _quantised(checkpoint, config.packing, packed) if config.packing else None,
    }


def _form(weight: Weight) -> str:
    if isinstance(weight, PackedWeight):
        return weight.packing.description
    if isinstance(weight, QuantizedWeight):
        return f"{weight.dtype}, a scale for {weight.group_size} channels"
    return str(weight.dtype)


def _quantised(
    checkpoint: Checkpoint, packing: Packing, packed: list[PackedWeight]
) -> dict[str, Any]:
    counts = Counter(part for weight in packed for part in weight.parts)
    try:
        rule = packing.recipe(checkpoint.config.model).weights[0]
        size = rule.group_size or "all"
        becomes = f"{rule.format}, a scale for {size} channels; {packing.kept}"
    except CheckpointError as error:
        becomes = f"cannot be built: {error}"
    return {
        "by": packing.library,
        "form": packing.description,
        "tensors": {
            name: {"count": counts[name], "meaning": part.meaning, "used": part.used}
            for name, part in packing.table.items()
            if counts[name]
        },
        "notes": list(packing.notes),
        "becomes": becomes,
    }
