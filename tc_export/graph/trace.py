# SPDX-License-Identifier: Apache-2.0
"""Trace the two exported graphs with fake weights: no weight is read, allocated or copied here.

The graphs are dynamic in batch, tokens, cache rows and frames, and static in layers and heads.
Example sizes are distinct and greater than one: an example size of one, or two equal ones, would
be taken for a constant or for the same axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export

from tc_export.config import AttentionMask, ModelConfig
from tc_export.contracts.graph_io import cache_parts
from tc_export.model.decoder import Cache, Decoder
from tc_export.model.tc_llava import TcLlava
from tc_export.model.vision import VisionModel

EXAMPLE_FRAMES = 3
EXAMPLE_BATCH, EXAMPLE_TOKENS, EXAMPLE_ROWS, EXAMPLE_LOGITS = 2, 7, 23, 5


class VisionGraph(nn.Module):
    """`pixel_values` -> `visual_features`."""

    def __init__(self, vision: VisionModel) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [frames, 3, image_size, image_size] to [frames, tokens_per_frame, channels]."""
        out: Tensor = self.vision(pixel_values)
        return out


class DecoderGraph(nn.Module):
    """One graph for prefill, chunked prefill and decode."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        temporal_ids: Tensor,
        kv_end: Tensor,
        logits_indices: Tensor,
        past_key_values: Cache,
        key_frame_ids: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """See `tc_export.model.decoder.Decoder.forward`."""
        out: tuple[Tensor, Cache] = self.decoder(
            inputs_embeds,
            position_ids,
            temporal_ids,
            kv_end,
            logits_indices,
            past_key_values,
            key_frame_ids,
        )
        return out


@contextmanager
def _fake_weights(dtype: torch.dtype) -> Iterator[FakeTensorMode]:
    """Build modules and tensors of floating-point type `dtype` that hold no data."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def trace_vision(config: ModelConfig, dtype: torch.dtype) -> ExportedProgram:
    """Trace frames to visual tokens, dynamic in the number of frames."""
    size = config.vision.image_size
    with _fake_weights(dtype):
        graph = VisionGraph(VisionModel(config)).eval()
        pixel_values = torch.zeros(EXAMPLE_FRAMES, 3, size, size)
        return export(graph, (pixel_values,), dynamic_shapes=({0: Dim("frames")},), strict=False)


def trace_decoder(config: ModelConfig, dtype: torch.dtype) -> ExportedProgram:
    """Trace embeddings to logits, dynamic in batch, tokens, cache rows and logits wanted."""
    batch, tokens, rows, logits = Dim("batch"), Dim("tokens"), Dim("cache_rows"), Dim("logits")
    with _fake_weights(dtype):
        model = TcLlava(config).eval()
        shape = (EXAMPLE_BATCH, EXAMPLE_TOKENS)
        arguments: list[object] = [
            torch.zeros(*shape, config.text.hidden_size),
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(EXAMPLE_BATCH, EXAMPLE_LOGITS, dtype=torch.int64),
            model.new_cache(EXAMPLE_BATCH, EXAMPLE_ROWS),
        ]
        per_token = {0: batch, 1: tokens}
        per_cache = {0: batch, 2: rows}
        layers = config.text.num_hidden_layers
        dynamic: list[object] = [
            *([per_token] * 4),
            {0: batch, 1: logits},
            [(per_cache,) * len(cache_parts(config))] * layers,
        ]
        if config.temporal.mask is AttentionMask.FRAME_BLOCK:
            arguments.append(torch.zeros(EXAMPLE_BATCH, EXAMPLE_ROWS, dtype=torch.int64))
            dynamic.append({0: batch, 1: rows})
        return export(
            DecoderGraph(model.decoder),
            tuple(arguments),
            dynamic_shapes=tuple(dynamic),
            strict=False,
        )
