# SPDX-License-Identifier: Apache-2.0
"""Bytes that answering takes on a device, part by part.

Letters: N frames of a call, P patches of a frame, E and W the vision tower's narrow and wide
channels; S tokens of a call, L cache rows that they see, T and I the language model's narrow and
wide channels; H heads, K key/value heads, D head size.

What was measured, and where the formulas come from, is in docs/adding-a-target.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tc_export.config import KvFormat, ModelConfig
from tc_export.contracts.graph_io import DECODER, FRAMES_A_CALL, PREFILL_TOKENS, VISION
from tc_export.dtypes import DType
from tc_export.plan.parameters import Count, FewBits, decoder_count, few_bits, vision_count
from tc_export.recipes import Recipe
from tc_export.targets import Precision, Precisions, Target

BYTES = {
    precision: precision.dtype.bits / 8
    for precision in (Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16)
}
"""Bytes of one weight."""

INTERFACE_BYTES = 4
"""Pixels, features and embeddings are handed over in float32."""

PAGE_BYTES = 4096

RUNTIME_BYTES = {
    # Measured on x86-64: Python with NumPy and ONNX Runtime 1.31 loaded, and a session's own
    # structures, without any weight.
    "onnxruntime": 150_000_000,
    # Assumed: CUDA context, TensorRT's runtime, cuBLAS-like workspaces.
    "tensorrt": 600_000_000,
    "tensorrt-rtx": 600_000_000,
}
HOST_PROCESS_BYTES = 300_000_000
"""Python, NumPy and PyTorch: they share a unified memory with the engines."""

# From plugins/kernels/attention_dispatch.cuh: when attention is split over keys, and how often.
_DECODE_ROWS, _DECODE_BLOCKS, _KEYS_A_SPLIT, _ROWS_A_BLOCK = 64, 264, 128, 16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of the device.

    Attributes:
        frames: of a question.
        length: in tokens, rows of the key/value cache.
        precisions: of the two graphs.
        parts: engines that the decoder is built as; each keeps activations of its own.
        recipe: by which weights are quantised; None where they are not.
    """

    frames: int
    length: int
    precisions: Precisions
    parts: int = 1
    recipe: Recipe | None = None


def memory_by_part(config: ModelConfig, target: Target, workload: Workload) -> dict[str, int]:
    """Peak bytes on the device, by part; their sum is the peak."""
    on_cpu = target.toolchain.engine == "onnxruntime"
    precisions = workload.precisions
    # ONNX Runtime's kernels multiply by scales in float32.
    scales = DType.FLOAT32 if on_cpu else DType.FLOAT16
    parts = {
        "vision_weights": _weights(
            vision_count(config),
            precisions.vision,
            few_bits(config, VISION, workload.recipe, scales=scales),
            on_cpu=on_cpu,
        ),
        "decoder_weights": _weights(
            decoder_count(config),
            precisions.decoder,
            few_bits(config, DECODER, workload.recipe, scales=scales),
            on_cpu=on_cpu,
        ),
        "kv_cache": kv_cache_bytes(config, workload),
        "vision_activations": vision_activations(config, workload, on_cpu=on_cpu),
        "decoder_activations": decoder_activations(config, workload, on_cpu=on_cpu),
        "plugin_workspace": 0
        if on_cpu
        else workload.parts * plugin_workspace(config, workload.length),
        "embedding": embedding_bytes(config, workload) if target.memory.unified else 0,
        "runtime": RUNTIME_BYTES[target.toolchain.engine]
        + (HOST_PROCESS_BYTES if target.memory.unified and not on_cpu else 0),
        "os_reserve": round(target.memory.os_reserve_gb * 1e9),
    }
    return parts


def _weights(count: Count, precision: Precision, few: FewBits, *, on_cpu: bool) -> int:
    matrix_bytes = BYTES[precision]
    if on_cpu and precision is Precision.FLOAT16:
        # ONNX Runtime's processor kernels multiply float32: it keeps a widened copy.
        matrix_bytes += BYTES[Precision.FLOAT32]
    # While loading, each matrix is there twice, as stored and as packed; what the largest took
    # is never given back.
    twice = count.largest_matrix if on_cpu else 0
    whole = count.matrices - few.numbers
    floats = (whole + twice) * matrix_bytes + count.rest * BYTES[precision]
    return round(floats) + few.nbytes


def kv_cache_bytes(config: ModelConfig, workload: Workload) -> int:
    """Keys and values of every layer, for all rows of the profile: allocated at once."""
    layers = config.text.num_hidden_layers
    return layers * workload.length * cached_token_bytes(config, workload.precisions.decoder)


def cached_token_bytes(config: ModelConfig, precision: Precision) -> int:
    """A token's key and value in one layer's cache; in eight bits each head's row has a scale."""
    text, kv = config.text, config.cache.kv.dtype
    rows = 2 * text.num_key_value_heads
    if kv is None:
        return round(rows * text.head_dim * BYTES[precision])
    return rows * (text.head_dim * kv.bits // 8 + DType.FLOAT32.bits // 8)


def vision_activations(config: ModelConfig, workload: Workload, *, on_cpu: bool) -> int:
    """The most that is alive at once in the vision engine, and its pixels."""
    vision = config.vision
    N = min(workload.frames, FRAMES_A_CALL)
    P, E, W = vision.grid**2 + 1, vision.hidden_size, vision.intermediate_size
    number = BYTES[workload.precisions.vision]
    # ONNX Runtime keeps scores and probabilities of a whole call; kernels on a GPU keep neither.
    scores = 2 * vision.num_attention_heads * P * P if on_cpu else 0
    attention = scores + 8 * P * E  # residual, norm, q, k, v as made and as laid out for heads
    wide = P * (3 * W + 2 * E)
    pixels = 3 * vision.image_size**2 * INTERFACE_BYTES
    features = workload.frames * config.tokens_per_frame * config.text.hidden_size
    return round(N * (max(attention, wide) * number + pixels)) + features * INTERFACE_BYTES


def decoder_activations(config: ModelConfig, workload: Workload, *, on_cpu: bool) -> int:
    """The most that is alive at once in any call of a prompt that fills the cache."""
    number = BYTES[workload.precisions.decoder]
    alive = max(
        _decoder_call(config, S, L, on_cpu=on_cpu) for S, L in prefill_calls(config, workload)
    )
    embeds = workload.length * config.text.hidden_size * INTERFACE_BYTES
    return workload.parts * round(alive * number) + embeds


def _decoder_call(config: ModelConfig, S: int, L: int, *, on_cpu: bool) -> float:
    """Numbers alive in a layer when S tokens attend to L rows."""
    text = config.text
    H, K, D = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    T, wide = text.hidden_size, text.intermediate_size
    attention = S * (2 * T + 3 * H * D + 2 * K * D)
    if on_cpu:
        # Scores and probabilities, the mask as numbers and as truths, and the rows that are seen.
        attention += int(2 * H * S * L + 1.5 * S * L) + 2 * K * L * D
        # In eight bits those are codes, which are widened, and multiplied by their scales.
        attention += 0 if config.cache.kv is KvFormat.OWN else 2 * 2 * K * L * D
    return max(attention, S * (3 * wide + 2 * T))


def prefill_calls(config: ModelConfig, workload: Workload) -> Iterator[tuple[int, int]]:
    """(tokens, rows seen) of each call that prefills the longest prompt, whole frames at a time."""
    m = config.tokens_per_frame
    if not config.temporal.mask.allows_frame_chunks:
        yield workload.length, workload.length
        return
    tokens = max(PREFILL_TOKENS // m, 1) * m
    for start in range(0, workload.length, tokens):
        stop = min(start + tokens, workload.length)
        yield stop - start, stop


def plugin_workspace(config: ModelConfig, length: int) -> int:
    """What the attention kernel asks for: partial results where keys are split among blocks.

    The largest over all calls that go that way; one layer runs at a time.
    """
    text = config.text
    group = text.num_attention_heads // text.num_key_value_heads
    possible = length // _KEYS_A_SPLIT
    largest = 0
    for tokens in range(1, _DECODE_ROWS // group + 1):
        blocks = text.num_key_value_heads * -(-tokens * group // _ROWS_A_BLOCK)
        splits = max(1, min(_DECODE_BLOCKS // blocks, possible))
        if splits > 1:
            parts = text.num_attention_heads * tokens * splits
            largest = max(largest, parts * (text.head_dim + 2) * 4)
    return largest


def embedding_bytes(config: ModelConfig, workload: Workload) -> int:
    """Pages of the embedding table that a conversation of text alone would touch, at most.

    The table is mapped from the disk, not loaded.
    """
    number = BYTES[workload.precisions.decoder]
    pages_a_row = -(-int(config.text.hidden_size * number) // PAGE_BYTES)
    return min(workload.length, config.text.vocab_size) * pages_a_row * PAGE_BYTES
