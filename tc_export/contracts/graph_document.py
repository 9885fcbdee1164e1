# SPDX-License-Identifier: Apache-2.0
"""`graph_io.json` in a bundle: what the graphs and engines take and give.

It is there for runtimes that share no code with this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    DECODER,
    FRAMES_A_CALL,
    LOGITS_A_CALL,
    VISION,
    WEIGHTS_TYPE,
    GraphTensor,
    decoder_inputs,
    decoder_outputs,
    prefill_tokens,
    vision_inputs,
    vision_outputs,
)
from tc_export.contracts.parts import EngineGraph


def as_document(
    config: ModelConfig,
    *,
    max_length: int,
    precisions: Mapping[str, str],
    engines: Sequence[EngineGraph] = (),
) -> dict[str, Any]:
    """Inputs, outputs and limits as JSON values.

    `precisions` are the graphs' own number formats, by graph. Where `engines` has parts of the
    decoder, each is described too, with its layers from the first to before the end.
    """

    def spell(tensors: Iterable[GraphTensor], precision: str) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "axes": list(tensor.axes),
                "dtype": precision if tensor.dtype == WEIGHTS_TYPE else str(tensor.dtype),
                "meaning": tensor.meaning,
            }
            for tensor in tensors
        ]

    sides = {
        VISION: (vision_inputs(config), vision_outputs(config)),
        DECODER: (decoder_inputs(config), decoder_outputs(config)),
    }
    parts = {
        each.name: {
            "layers": [each.part.first, each.part.end],
            "inputs": spell(decoder_inputs(config, each.part.layers), precisions[DECODER]),
            "outputs": spell(decoder_outputs(config, each.part.layers), precisions[DECODER]),
        }
        for each in engines
        if each.part is not None
    }
    return {
        **{
            graph: {
                "inputs": spell(inputs, precisions[graph]),
                "outputs": spell(outputs, precisions[graph]),
            }
            for graph, (inputs, outputs) in sides.items()
        },
        **({"decoder_parts": parts} if parts else {}),
        "limits": {
            "frames_a_call": FRAMES_A_CALL,
            "logits_a_call": LOGITS_A_CALL,
            "prefill_tokens": prefill_tokens(config, max_length),
            "cache_rows": max_length,
        },
    }
