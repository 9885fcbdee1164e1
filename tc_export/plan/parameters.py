# SPDX-License-Identifier: Apache-2.0
"""How many weights a model has, counted from its configuration alone.

Matrices are kept apart from the rest: they are what is multiplied, and what can be quantised.
A test compares the counts with the model itself.

Letters: E channels of the vision tower, W its wide layer; T channels of the language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tc_export.config import ModelConfig
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import weight_shapes
from tc_export.recipes import Recipe
from tc_export.targets import Precision


@dataclass(frozen=True, kw_only=True)
class Count:
    """Weights of one engine."""

    matrices: int
    rest: int  # norms, biases, positions: they stay in floating point
    largest_matrix: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.matrices + self.rest


@dataclass(frozen=True, kw_only=True)
class FewBits:
    """Matrices of one engine that a recipe stores in few bits, and what they take with scales.

    `multiplied_in` says of those whose inputs are rounded too how many numbers there are in each
    format; the others are widened to the graph's own.
    """

    numbers: int = 0
    nbytes: int = 0
    multiplied_in: Mapping[Precision, int] = field(default_factory=dict)


PACKED_BY_ONNX_RUNTIME = frozenset({Precision.INT4, Precision.INT8})
"""Formats whose numbers its processor kernels multiply by; weights in others it widens."""


def few_bits(
    config: ModelConfig,
    graph: str,
    recipe: Recipe | None,
    *,
    scales: DType = DType.FLOAT16,
    formats: Collection[Precision] = frozenset(Precision),
) -> FewBits:
    """Count what a recipe makes of the weights of one graph.

    Args:
        config: the model's.
        graph: `vision` or `decoder`.
        recipe: None where nothing is quantised.
        scales: their format, where they are not of eight bits.
        formats: weights in others do not count.
    """
    numbers = 0
    nbits = 0.0
    rates: Counter[Precision] = Counter()
    for name, shape in weight_shapes(config).items() if recipe else ():
        rule = recipe.rule(name) if recipe and name.startswith(f"{graph}.") else None
        if recipe is not None and rule is not None and Precision(rule.format) in formats:
            count = shape[0] * shape[-1]
            numbers += count
            nbits += count * rule.bits(shape, scales)
            if recipe.budget is not None:  # it says what numbers and scales of 16 bits take
                nbits += count * (recipe.budget - rule.bits(shape))
            if rule.inputs:
                rates[Precision(rule.inputs)] += count
    return FewBits(numbers=numbers, nbytes=round(nbits / 8), multiplied_in=dict(rates))


def vision_count(config: ModelConfig) -> Count:
    """Weights of the vision engine: tower up to the feature layer, and projector."""
    vision, T = config.vision, config.text.hidden_size
    E, W, layers = vision.hidden_size, vision.intermediate_size, vision.layers_used
    patches = 3 * E * vision.patch_size**2
    class_token_and_positions = E + (vision.grid**2 + 1) * E
    norms = 2 * E + layers * 2 * 2 * E
    biases = layers * (4 * E + W + E) + (2 * T if config.projector_bias else 0)
    return Count(
        matrices=patches + layers * (4 * E * E + 2 * E * W) + T * E + T * T,
        rest=class_token_and_positions + norms + biases,
        largest_matrix=max(T * E, T * T, *([E * E, E * W] if layers else [])),
    )


def decoder_count(config: ModelConfig) -> Count:
    """Weights of the decoder engine: layers and head. A tied head is a copy of its own there."""
    text = config.text
    T, wide = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    biases = (queries + 2 * keys + T if text.attention_bias else 0) + (
        2 * wide + T if text.mlp_bias else 0
    )
    per_layer = 2 * T * queries + 2 * T * keys + 3 * T * wide
    return Count(
        matrices=text.num_hidden_layers * per_layer + text.vocab_size * T,
        rest=text.num_hidden_layers * (2 * T + biases) + T,
        largest_matrix=max(text.vocab_size * T, T * queries, T * wide),
    )


def head_matrix(config: ModelConfig) -> int:
    """Weights of the matrix from channels to the vocabulary: used for wanted logits only."""
    return config.text.vocab_size * config.text.hidden_size


def layer_weights(config: ModelConfig) -> int:
    """Numbers in the matrices of one decoder layer."""
    count = decoder_count(config)
    return (count.matrices - head_matrix(config)) // config.text.num_hidden_layers
