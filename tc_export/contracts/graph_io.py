# SPDX-License-Identifier: Apache-2.0
"""The inputs and outputs of both graphs: names, axes, types and limits, said once.

The exporter gives them these names and axes, every backend finds them by these names, engines are
built for these limits, and a bundle carries all of it as `graph_io.json`, so that a runtime that
shares no code with this package can be written against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tc_export.config import AttentionMask, KvFormat, ModelConfig
from tc_export.dtypes import DType

VISION = "vision"
DECODER = "decoder"
GRAPHS = (VISION, DECODER)

PIXEL_VALUES = "pixel_values"
VISUAL_FEATURES = "visual_features"

INPUTS_EMBEDS = "inputs_embeds"
POSITION_IDS = "position_ids"
TEMPORAL_IDS = "temporal_ids"
KV_END = "kv_end"
LOGITS_INDICES = "logits_indices"
KEY_FRAME_IDS = "key_frame_ids"
LOGITS = "logits"

KEY, VALUE = "key", "value"
SCALE = "_scale"
"""What the name of a part's scales ends in, where the cache is in eight bits."""
PAST, PRESENT = "past_key_values", "present"
HIDDEN = "hidden_states"

FRAMES_A_CALL = 8
"""Most frames that go through the vision engine at once: bounds its memory, costs no speed."""

LOGITS_A_CALL = 64
"""Most tokens of a call whose logits are asked for: generation wants one, a comparison more."""

PREFILL_TOKENS = 1024
"""Most tokens that one call prefills, unless a single frame has more. Bounds the mask and the
scores that a runtime without our kernels builds in one call."""

WEIGHTS_TYPE = "T"
"""Stands for the type of the graph's weights."""


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph. An axis is a length, or the name of a dynamic axis."""

    name: str
    axes: tuple[str | int, ...]
    dtype: str  # a `DType`, or `WEIGHTS_TYPE`
    meaning: str

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The names of the dynamic axes, by their index."""
        return {index: axis for index, axis in enumerate(self.axes) if isinstance(axis, str)}

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the dynamic axes have these lengths."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)


def past_name(layer: int, part: str) -> str:
    """The input that takes a layer's cache as it was before the call; one of `cache_parts`."""
    return f"{PAST}.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """The output that gives a layer's cache as it is after the call."""
    return f"{PRESENT}.{layer}.{part}"


def cache_parts(config: ModelConfig) -> tuple[str, ...]:
    """What a layer's cache is made of, in order: keys, values, and perhaps the scales of both."""
    plain = (KEY, VALUE)
    if config.cache.kv is KvFormat.OWN:
        return plain
    return (*plain, *(f"{part}{SCALE}" for part in plain))


def is_past(name: str) -> bool:
    """True for an input that takes a part of the cache."""
    return name.startswith(f"{PAST}.")


def is_present(name: str) -> bool:
    """True for an output that gives a part of the cache."""
    return name.startswith(f"{PRESENT}.")


def vision_inputs(config: ModelConfig) -> tuple[GraphTensor, ...]:
    """The vision graph's only input."""
    size = config.vision.image_size
    axes = ("frames", 3, size, size)
    return (GraphTensor(PIXEL_VALUES, axes, WEIGHTS_TYPE, "normalised frames, red first"),)


def vision_outputs(config: ModelConfig) -> tuple[GraphTensor, ...]:
    """The vision graph's only output."""
    axes = ("frames", config.tokens_per_frame, config.text.hidden_size)
    meaning = "projected and pooled: what takes the visual tokens' places"
    return (GraphTensor(VISUAL_FEATURES, axes, WEIGHTS_TYPE, meaning),)


def hidden_name(layer: int) -> str:
    """The hidden states that go into a layer: what one part of a decoder hands to the next."""
    return f"{HIDDEN}.{layer}"


def is_hidden(name: str) -> bool:
    """True for what one part of a decoder hands to the next."""
    return name.startswith(f"{HIDDEN}.")


def decoder_inputs(config: ModelConfig, layers: range | None = None) -> tuple[GraphTensor, ...]:
    """The decoder graph's inputs, in order; or those of a part of it, with `layers` alone."""
    layers = _all_layers(config) if layers is None else layers
    per_token = ("batch", "tokens")
    embedded = (*per_token, config.text.hidden_size)
    tensors = [
        GraphTensor(INPUTS_EMBEDS, embedded, WEIGHTS_TYPE, "embedded tokens and visual features")
        if layers.start == 0
        else GraphTensor(hidden_name(layers.start), embedded, WEIGHTS_TYPE, "of the part before"),
        GraphTensor(
            POSITION_IDS, per_token, DType.INT64, "n, and the token's cache row; -1 for padding"
        ),
        GraphTensor(TEMPORAL_IDS, per_token, DType.INT64, "T; -1 for padding"),
        GraphTensor(KV_END, per_token, DType.INT32, "cache rows that the token sees"),
    ]
    if layers.stop == config.text.num_hidden_layers:
        meaning = "tokens of the call to give logits of"
        tensors.append(GraphTensor(LOGITS_INDICES, ("batch", "logits"), DType.INT64, meaning))
    tensors += _cache(config, PAST, layers, "cache before the call")
    if config.temporal.mask is AttentionMask.FRAME_BLOCK:
        axes = ("batch", "cache_rows")
        meaning = "frame of each cache row; -1 for text"
        tensors.append(GraphTensor(KEY_FRAME_IDS, axes, DType.INT64, meaning))
    return tuple(tensors)


def decoder_outputs(config: ModelConfig, layers: range | None = None) -> tuple[GraphTensor, ...]:
    """The decoder graph's outputs, in order; or those of a part of it, with `layers` alone."""
    layers = _all_layers(config) if layers is None else layers
    if layers.stop == config.text.num_hidden_layers:
        axes: tuple[str | int, ...] = ("batch", "logits", config.text.vocab_size)
        result = GraphTensor(LOGITS, axes, WEIGHTS_TYPE, "of the tokens asked for")
    else:
        axes = ("batch", "tokens", config.text.hidden_size)
        result = GraphTensor(hidden_name(layers.stop), axes, WEIGHTS_TYPE, "for the next part")
    meaning = "cache after the call; may be the same buffer as before it"
    return (result, *_cache(config, PRESENT, layers, meaning))


def _all_layers(config: ModelConfig) -> range:
    return range(config.text.num_hidden_layers)


def _cache(config: ModelConfig, prefix: str, layers: range, meaning: str) -> Iterable[GraphTensor]:
    per_row = ("batch", config.text.num_key_value_heads, "cache_rows")
    numbers = config.cache.kv.dtype or WEIGHTS_TYPE
    for layer in layers:
        for part in cache_parts(config):
            name = f"{prefix}.{layer}.{part}"
            if part.endswith(SCALE):
                of = f"what the row's numbers in {name.removesuffix(SCALE)} are multiplied by"
                yield GraphTensor(name, per_row, DType.FLOAT32, of)
            else:
                yield GraphTensor(name, (*per_row, config.text.head_dim), numbers, meaning)


def names(tensors: Iterable[GraphTensor]) -> list[str]:
    """The tensors' names, in order."""
    return [tensor.name for tensor in tensors]


def prefill_tokens(config: ModelConfig, max_length: int) -> int:
    """Tokens of the largest prefill call: a chunk of whole frames, or all where nothing is cut."""
    if not config.temporal.mask.allows_frame_chunks:
        return max_length
    return min(max_length, max(PREFILL_TOKENS, config.tokens_per_frame))
