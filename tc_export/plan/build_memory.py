# SPDX-License-Identifier: Apache-2.0
"""What the parts of a model take in memory while it is compared, and how it is cut to fit.

A part that is opened costs what it costs whether it is large or small: cutting finer costs no time,
since every weight is read once either way. So parts are kept small where memory is plenty too.
"""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import DECODER, LOGITS_A_CALL
from tc_export.contracts.parts import Part, even_parts
from tc_export.dtypes import DType
from tc_export.errors import UnsupportedEnvironment
from tc_export.plan.host import host_memory
from tc_export.plan.memory import BYTES, cached_token_bytes
from tc_export.plan.parameters import (
    PACKED_BY_ONNX_RUNTIME,
    few_bits,
    head_matrix,
    layer_weights,
    vision_count,
)
from tc_export.plan.units import spell_bytes
from tc_export.recipes import Recipe
from tc_export.targets import Precision, Precisions

BASE_BYTES = 500_000_000
"""Measured on x86-64: Python with PyTorch, ONNX and ONNX Runtime loaded, and no weight."""

OPENED = {
    Precision.FLOAT32: 2.1,
    Precision.FLOAT16: 3.2,
    Precision.BFLOAT16: 4.3,
}
"""Peak bytes in ONNX Runtime's processor kernels for each byte of weights, while a part is opened.
Measured with ONNX Runtime 1.31 on one, two and four layers of a 7B decoder in float16: 1.64, 2.82
and 5.20 GB for 0.40, 0.81 and 1.62 GB of weights. It widens to float32, and packs what it widened;
a bfloat16 graph is computed in float32."""

OPENED_FEW_BITS = 1.2
"""The same for each byte of weights in four or eight bits, counted with scales in float32: they are
transposed and packed one after the other. Measured with ONNX Runtime 1.31 and twelve matrices of
4096 x 4096: 0.96 in four bits and 1.14 in eight in a float32 graph, 1.06 and 1.19 in a float16
graph, 1.14 where that is computed in float32."""

WIDENED = 1.22
"""What a float16 graph takes more where its arithmetic is float32, in which parity runs it too.
Measured on a decoder of 135 million weights: 1.14 and 0.93 GB. A bfloat16 graph takes less so."""

TRUTH_FACTOR = 1.32
"""The float64 layer, the stored one that it is made from, and the tokens on their way. Golden data
peaked at 0.98 GB with 135 million weights (its head is the largest matrix), at 2.73 GB with 7
billion."""

REFERENCE_BYTES = 590_000_000
"""As `BASE_BYTES`, with PyTorch's model and Polygraphy in use."""

PART_BYTES = 3_000_000_000
"""What one part may take where memory is plenty."""

ANSWER_BYTES = 2_000_000_000
"""What the truth's caches may take where memory is plenty."""

SHARE_OF_FREE = 2 / 3


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """How a comparison fits into memory."""

    parts: tuple[Part, ...]
    answer_bytes: int
    peak_bytes: int  # predicted


def memory_limits(
    config: ModelConfig,
    precisions: Precisions,
    memory_bytes: int | None = None,
    max_length: int = 0,
    recipe: Recipe | None = None,
) -> MemoryLimits:
    """Cut the decoder so that a comparison stays within `memory_bytes`.

    None: two thirds of what is free on this machine. `max_length` is the profile's: a comparison
    goes to the end of its cache. `recipe` is what the weights are quantised by.

    Raises:
        UnsupportedEnvironment: one layer takes more; says what it takes.
    """
    limit = memory_bytes or round(host_memory().available * SHARE_OF_FREE)
    needed = least_bytes(config, precisions, max_length, recipe)
    if limit < needed:
        raise UnsupportedEnvironment(
            f"comparing with PyTorch takes {spell_bytes(needed)} of memory for one layer at a "
            f"time, and may take {spell_bytes(limit)}",
            hint="give it more with --memory, close other programs, or use --no-parity",
        )
    layers = config.text.num_hidden_layers
    logits = _logits_bytes(config, max_length)
    room = min(limit - BASE_BYTES - logits, PART_BYTES)

    def compared(parts: int) -> int:
        each = -(-layers // parts)
        return _compared_bytes(config, precisions.decoder, each, max_length, recipe)

    parts = next((count for count in range(1, layers) if compared(count) <= room), layers)
    truth = truth_bytes(config) + _long_layer_bytes(config, max_length)
    answer_bytes = max(0, min(ANSWER_BYTES, limit - truth - logits))
    caches = min(answer_bytes, _caches_bytes(config))
    return MemoryLimits(
        parts=even_parts(layers, parts),
        answer_bytes=answer_bytes,
        peak_bytes=max(
            BASE_BYTES + _vision_bytes(config, precisions),
            min(limit, logits + max(BASE_BYTES + compared(parts), truth + caches)),
        ),
    )


def truth_bytes(config: ModelConfig) -> int:
    """What making golden data takes: one layer of the truth."""
    return REFERENCE_BYTES + _truth_bytes(config)


def opened_part_bytes(
    config: ModelConfig, precision: Precision, layers: int, recipe: Recipe | None = None
) -> int:
    """The peak while a part of so many layers is opened: the last one, which has the head."""
    return BASE_BYTES + _part_bytes(config, precision, layers, 0, recipe)


def least_bytes(
    config: ModelConfig, precisions: Precisions, max_length: int = 0, recipe: Recipe | None = None
) -> int:
    """The least memory that a comparison takes: a layer of the truth, a part of one layer, or the
    vision graph, whichever is the most."""
    return BASE_BYTES + max(
        _truth_bytes(config) + _long_layer_bytes(config, max_length),
        _compared_bytes(config, precisions.decoder, 1, max_length, recipe),
        _vision_bytes(config, precisions),
    )


def _logits_bytes(config: ModelConfig, max_length: int) -> int:
    """Logits of all tokens that are compared: the truth's in float64, those of the engine and of a
    draw of PyTorch in float32.

    The longest sequence is prefilled frame by frame; the others take three calls together.
    """
    calls = max_length // config.tokens_per_frame + 3
    rows = min(2 * max_length, calls * LOGITS_A_CALL)
    return rows * config.text.vocab_size * (DType.FLOAT64.bits + 2 * DType.FLOAT32.bits) // 8


def _caches_bytes(config: ModelConfig) -> int:
    """The truth's caches for one answer of the model's whole context: no answer takes more."""
    text = config.text
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return per_token * text.max_position_embeddings * DType.FLOAT64.bits // 8


def _part_bytes(
    config: ModelConfig,
    precision: Precision,
    layers: int,
    max_length: int,
    recipe: Recipe | None,
) -> int:
    """Weights and the cache of so many layers."""
    few = few_bits(config, DECODER, recipe, scales=DType.FLOAT32, formats=PACKED_BY_ONNX_RUNTIME)
    share = layers / config.text.num_hidden_layers
    whole = layers * layer_weights(config) - share * few.numbers + head_matrix(config)
    cached = layers * max_length * cached_token_bytes(config, precision)
    floats = whole * OPENED[precision] * BYTES[precision]
    return round(floats + share * few.nbytes * OPENED_FEW_BITS) + cached


def _long_layer_bytes(config: ModelConfig, max_length: int) -> int:
    """What the truth needs besides weights to take a frame through a layer at the end of a cache:
    keys and values before and after the call, and the scores.

    Measured with half a 7B layer (2048 channels, 16 heads) beside its weights: 0.28 GB at 2816
    rows and 0.76 GB at 11264; counted are 0.24 and 0.95.
    """
    text = config.text
    cached = 4 * text.num_key_value_heads * text.head_dim
    scores = text.num_attention_heads * config.tokens_per_frame
    return max_length * (cached + scores) * DType.FLOAT64.bits // 8


def _compared_bytes(
    config: ModelConfig,
    precision: Precision,
    layers: int,
    max_length: int,
    recipe: Recipe | None,
) -> int:
    """The most that a part takes in the arithmetics that it is compared in."""
    factor = WIDENED if precision is Precision.FLOAT16 else 1.0
    return round(factor * _part_bytes(config, precision, layers, max_length, recipe))


def _vision_bytes(config: ModelConfig, precisions: Precisions) -> int:
    return round(vision_count(config).total * BYTES[precisions.vision] * OPENED[precisions.vision])


def _truth_bytes(config: ModelConfig) -> int:
    largest = max(layer_weights(config), head_matrix(config))
    return round(largest * DType.FLOAT64.bits / 8 * TRUTH_FACTOR)
