# SPDX-License-Identifier: Apache-2.0
"""What the planner counts, against the model itself and against loops over its definition."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tc_export.config import AttentionMask, CacheConfig, KvFormat, ModelConfig
from tc_export.model.positions import Clip, Text, frame_chunks, lay_out
from tc_export.model.tc_llava import TcLlava
from tc_export.plan import memory
from tc_export.plan.memory import (
    Workload,
    kv_cache_bytes,
    memory_by_part,
    plugin_workspace,
    prefill_calls,
)
from tc_export.plan.parameters import decoder_count, head_matrix, vision_count
from tc_export.plan.roofline import visible_pairs
from tc_export.targets import Precision, Precisions, load_target
from tests.plan.configs import model_configs, vicuna
from tests.repository import REPOSITORY

TORCH_TYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.FLOAT16: torch.float16,
    Precision.BFLOAT16: torch.bfloat16,
}
FLOATS = st.sampled_from(list(TORCH_TYPES))
QUICK = settings(deadline=None, max_examples=40)


def workload(frames: int = 2, length: int = 100, **formats: Precision) -> Workload:
    chosen = {"vision": Precision.FLOAT16, "decoder": Precision.FLOAT16, **formats}
    return Workload(frames=frames, length=length, precisions=Precisions(**chosen))


def meta_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> TcLlava:
    with torch.device("meta"):
        return TcLlava(config).to(dtype)


@QUICK
@given(model_configs())
def test_weights_are_those_of_the_model(config: ModelConfig) -> None:
    model = meta_model(config)
    for count, part in (
        (vision_count(config), model.vision),
        (decoder_count(config), model.decoder),
    ):
        weights = list(part.parameters())
        matrices = [w for name, w in part.named_parameters() if w.dim() > 1 and "posi" not in name]
        assert count.total == sum(w.numel() for w in weights)
        assert count.matrices == sum(w.numel() for w in matrices)
        assert count.largest_matrix == max(w.numel() for w in matrices if w.dim() == 2)
    assert head_matrix(config) == model.decoder.lm_head.weight.numel()


@QUICK
@given(model_configs(), FLOATS, FLOATS)
def test_bytes_on_a_gpu_are_those_of_the_model(
    config: ModelConfig, vision: Precision, decoder: Precision
) -> None:
    parts = memory_by_part(config, load_target("l4"), workload(vision=vision, decoder=decoder))
    for name, precision in (("vision", vision), ("decoder", decoder)):
        part = getattr(meta_model(config, TORCH_TYPES[precision]), name)
        assert parts[f"{name}_weights"] == sum(w.nbytes for w in part.parameters())


@QUICK
@given(model_configs(), FLOATS, st.integers(1, 5000), st.sampled_from(list(KvFormat)))
def test_the_cache_is_the_real_caches(
    config: ModelConfig, precision: Precision, length: int, kv: KvFormat
) -> None:
    config = config.model_copy(update={"cache": CacheConfig(kv=kv)})
    cache = meta_model(config, TORCH_TYPES[precision]).new_cache(1, length)
    expected = sum(part.nbytes for layer in cache for part in layer)
    assert kv_cache_bytes(config, workload(length=length, decoder=precision)) == expected


def test_a_vicuna_cache_takes_half_a_mebibyte_a_token(tmp_path: Path) -> None:
    config = vicuna(tmp_path)
    assert kv_cache_bytes(config, workload(length=1)) == 512 * 1024
    in_int8 = config.model_copy(update={"cache": CacheConfig(kv=KvFormat.INT8)})
    # 128 codes and a scale for each of two rows of 32 heads in 32 layers.
    assert kv_cache_bytes(in_int8, workload(length=1)) == 264 * 1024


@QUICK
@given(model_configs(), st.integers(1, 4), st.integers(1, 30), st.integers(0, 9))
def test_pairs_are_those_of_the_mask(
    config: ModelConfig, frames: int, after: int, before: int
) -> None:
    """The text's place does not change the count."""
    clip = Clip(frames, config.tokens_per_frame)
    layout, _ = lay_out([Text(before), clip, Text(after)], config.temporal)
    expected = 0
    for frame, end in zip(layout.frame_ids, layout.kv_end, strict=True):
        seen = layout.frame_ids[:end]
        hidden = config.temporal.mask is AttentionMask.FRAME_BLOCK and frame >= 0
        expected += int(((seen < 0) | (seen == frame)).sum()) if hidden else int(end)
    assert visible_pairs(config, frames, layout.length) == expected


@QUICK
@given(model_configs(), st.integers(1, 200))
def test_prefill_calls_are_the_sessions(config: ModelConfig, frames: int) -> None:
    m, mask = config.tokens_per_frame, config.temporal.mask
    assume(mask.allows_frame_chunks and frames * m < 40_000)
    layout, _ = lay_out([Clip(frames, m)], config.temporal)
    spans = frame_chunks(layout, mask, max(1024, m))
    asked = workload(frames=frames, length=layout.length)
    assert list(prefill_calls(config, asked)) == [(stop - start, stop) for start, stop in spans]


def test_a_mask_that_looks_ahead_is_prefilled_at_once(tmp_path: Path) -> None:
    config = vicuna(tmp_path)
    temporal = config.temporal.model_copy(update={"mask": AttentionMask.FULL_VISUAL})
    ahead = config.model_copy(update={"temporal": temporal})
    assert list(prefill_calls(ahead, workload(length=3000))) == [(3000, 3000)]


def test_the_kernels_split_as_the_planner_says() -> None:
    source = (REPOSITORY / "plugins/kernels/attention_dispatch.cuh").read_text()
    found = re.search(r"kBlocksWanted = (\d+), kMinKeys = (\d+)", source)
    rows = re.search(r"packed_rows\(args\) <= (\d+)", source)
    block = re.search(r"ceil_divide\(packed_rows\(args\), (\d+)\)", source)
    assert found
    assert rows
    assert block
    assert [int(x) for x in (rows[1], *found.groups(), block[1])] == [
        memory._DECODE_ROWS,
        memory._DECODE_BLOCKS,
        memory._KEYS_A_SPLIT,
        memory._ROWS_A_BLOCK,
    ]


def test_workspace_of_vicuna_is_worked_out_by_hand(tmp_path: Path) -> None:
    """32 heads of 128 channels, 4,096 rows: one token makes 32 blocks, so 264 // 32 = 8 parts."""
    config = vicuna(tmp_path)
    # 16 tokens still are 32 blocks: 32 x 16 x 8 parts of 128 sums and 2 states in float32. 17 are
    # 64 blocks in 4 parts, and 32 tokens the most of those; 64 are 128 blocks in 2 parts.
    assert plugin_workspace(config, 4096) == 32 * 16 * 8 * (128 + 2) * 4
    assert plugin_workspace(config, 255) == 0
