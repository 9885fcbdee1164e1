# SPDX-License-Identifier: Apache-2.0
"""How long answering takes, predicted: bytes and operations against bandwidth and rate.

A step takes as long as the slowest of moving its bytes, doing its operations, each at a share of
what the device's makers state, and launching its kernels. Attention multiplies in the decoder's own
format. Nothing here was measured on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tc_export.config import AttentionMask, ModelConfig
from tc_export.contracts.graph_io import DECODER, FRAMES_A_CALL, VISION
from tc_export.plan.memory import (
    BYTES,
    Workload,
    kv_cache_bytes,
    prefill_calls,
)
from tc_export.plan.parameters import Count, decoder_count, few_bits, head_matrix, vision_count
from tc_export.targets import Doubt, Mark, Precision, Target

BANDWIDTH_SHARE, RATE_SHARE = 0.7, 0.5

LAUNCH_S = 4e-6
"""Assumed: from one kernel of a CUDA graph to the next, however little it does."""

DECODER_LAUNCHES_A_LAYER, VISION_LAUNCHES_A_LAYER, OTHER_LAUNCHES = 14, 12, 4
"""Kernels: two norms with their sums, the products, two rotations, attention with its merging of
splits, and the gate; a builder that fuses more launches fewer. Then sampling's logits, the norm and
what gathers the tokens that are asked for."""

PART_LAUNCHES = 6
"""Kernels of each part of a decoder beyond those of its layers: a graph of its own, and what is
computed from positions in each part anew."""

_SHARE_DOUBT = (
    Doubt(field="share", mark=Mark.ASSUMED, reason="what good kernels reach; not measured here"),
)

_LAUNCH_DOUBT = (
    Doubt(field="launch", mark=Mark.ASSUMED, reason="and so is the number of them; not measured"),
)

_PARTS_DOUBT = (
    Doubt(
        field="parts",
        mark=Mark.ASSUMED,
        reason=f"{PART_LAUNCHES} launches a part, and hidden states written and read; in full, as "
        "if nothing hid it",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that a prediction rests on."""

    name: str
    value: float
    unit: str
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Times:
    """Predicted for a prompt that fills the profile, the longest that it takes."""

    vision_s: float
    prefill_s: float
    decode_tokens_per_s: float
    bounds: dict[str, str]  # by step: `bandwidth`, `rate` or `launches`
    parts_s: float  # of a decode step: what it costs that the decoder is in parts, at most
    figures: tuple[Figure, ...]

    @property
    def time_to_first_token_s(self) -> float:
        """Frames, then the prompt; decoding the video file is not in it."""
        return self.vision_s + self.prefill_s


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step moves and computes.

    `in_few_bits` are those of the operations that multiply rounded inputs, by their format.
    """

    nbytes: float
    operations: float
    launches: int
    in_few_bits: Mapping[Precision, float] = field(default_factory=dict)


def vision_work(config: ModelConfig, workload: Workload) -> Work:
    """All frames through the vision engine: weights are read once a call."""
    vision, count = config.vision, vision_count(config)
    patches = vision.grid**2 + 1
    pairs = vision.layers_used * patches**2 * vision.hidden_size
    calls = -(-workload.frames // FRAMES_A_CALL)
    return Work(
        nbytes=calls * _weight_bytes(count, workload, VISION, config),
        operations=workload.frames * (2 * count.matrices * patches + 4 * pairs),
        launches=calls * (vision.layers_used * VISION_LAUNCHES_A_LAYER + OTHER_LAUNCHES),
    )


def prefill_work(config: ModelConfig, workload: Workload) -> Work:
    """The longest prompt through the decoder; logits of its last token only."""
    text = config.text
    head = head_matrix(config)
    per_token = 2 * (decoder_count(config).matrices - head)
    channels = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    calls = list(prefill_calls(config, workload))
    pairs = visible_pairs(config, workload.frames, workload.length)
    return Work(
        nbytes=len(calls) * decoder_weight_bytes(config, workload),
        operations=workload.length * per_token + len(calls) * 2 * head + 4 * channels * pairs,
        launches=len(calls) * _decoder_launches(config),
        in_few_bits=_in_few_bits(config, workload, workload.length),
    )


def decode_work(config: ModelConfig, workload: Workload) -> Work:
    """One token when the cache is full."""
    text = config.text
    channels = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    return Work(
        nbytes=decoder_weight_bytes(config, workload) + kv_cache_bytes(config, workload),
        operations=2 * decoder_count(config).matrices + 4 * channels * workload.length,
        launches=_decoder_launches(config),
        in_few_bits=_in_few_bits(config, workload, 1),
    )


def _in_few_bits(config: ModelConfig, workload: Workload, tokens: int) -> dict[Precision, float]:
    """Operations of so many tokens with rounded inputs, by their format."""
    numbers = few_bits(config, DECODER, workload.recipe).multiplied_in
    return {precision: 2.0 * tokens * count for precision, count in numbers.items()}


def _decoder_launches(config: ModelConfig) -> int:
    return config.text.num_hidden_layers * DECODER_LAUNCHES_A_LAYER + OTHER_LAUNCHES


def visible_pairs(config: ModelConfig, frames: int, length: int) -> int:
    """Pairs of a query and a key that it sees: a clip of `frames`, then text up to `length`."""
    causal = length * (length + 1) // 2
    m = config.tokens_per_frame
    later_in_frame = m * (m - 1) // 2
    match config.temporal.mask:
        case AttentionMask.FRAME_BLOCK_CAUSAL:
            return causal + frames * later_in_frame
        case AttentionMask.FULL_VISUAL:
            return causal + frames * m * (frames * m - 1) // 2
        case AttentionMask.FRAME_BLOCK:
            earlier_frames = frames * (frames - 1) // 2 * m * m
            return causal + frames * later_in_frame - earlier_frames
        case _:
            return causal


def decoder_weight_bytes(config: ModelConfig, workload: Workload) -> float:
    """What one pass over the decoder's weights reads."""
    return _weight_bytes(decoder_count(config), workload, DECODER, config)


def _weight_bytes(count: Count, workload: Workload, graph: str, config: ModelConfig) -> float:
    few = few_bits(config, graph, workload.recipe)
    precision: Precision = getattr(workload.precisions, graph)
    return (count.total - few.numbers) * BYTES[precision] + few.nbytes


def predict_times(config: ModelConfig, target: Target, workload: Workload) -> Times | None:
    """Times on the target; None where its file states no bandwidth or no rate."""
    bandwidth = target.memory.bandwidth_gb_s
    stated = target.rates.model_dump(exclude_none=True)
    vision, decoder = workload.precisions.vision, workload.precisions.decoder
    if bandwidth is None or vision not in stated or decoder not in stated:
        return None
    multiplied_in = few_bits(config, DECODER, workload.recipe).multiplied_in
    if any(precision not in stated for precision in multiplied_in):
        return None
    rates: dict[Precision, float] = {
        name: stated[name] for name in (vision, decoder, *multiplied_in)
    }

    def slowest(work: Work, precision: Precision) -> tuple[float, str]:
        terms = {
            "bandwidth": work.nbytes / (bandwidth * 1e9 * BANDWIDTH_SHARE),
            "rate": sum(
                operations / (rates[in_format] * 1e12 * RATE_SHARE)
                for in_format, operations in (
                    (precision, work.operations - sum(work.in_few_bits.values())),
                    *work.in_few_bits.items(),
                )
            ),
            "launches": work.launches * LAUNCH_S,
        }
        bound = max(terms, key=lambda name: terms[name])
        return terms[bound], bound

    steps = {
        "vision": slowest(vision_work(config, workload), vision),
        "prefill": slowest(prefill_work(config, workload), decoder),
        "decode": slowest(decode_work(config, workload), decoder),
    }
    more = parts_work(config, workload)
    parts_s = more.nbytes / (bandwidth * 1e9 * BANDWIDTH_SHARE) + more.launches * LAUNCH_S
    return Times(
        vision_s=steps["vision"][0],
        prefill_s=steps["prefill"][0],
        decode_tokens_per_s=1 / (steps["decode"][0] + parts_s),
        bounds={name: bound for name, (_, bound) in steps.items()},
        parts_s=parts_s,
        figures=(*_figures(target, bandwidth, rates), *_parts_figure(workload, parts_s)),
    )


def parts_work(config: ModelConfig, workload: Workload) -> Work:
    """What a decode step has to do more for a decoder in parts: hidden states go to memory."""
    cuts = workload.parts - 1
    hidden = config.text.hidden_size * BYTES[workload.precisions.decoder]
    return Work(nbytes=cuts * 2 * hidden, operations=0, launches=cuts * PART_LAUNCHES)


def _parts_figure(workload: Workload, seconds: float) -> tuple[Figure, ...]:
    if workload.parts == 1:
        return ()
    name = f"decoder in {workload.parts} parts, of a decode step"
    value = float(f"{seconds * 1e6:.2g}")  # derived, not stated: as many digits as it is worth
    return (Figure(name=name, value=value, unit="us", doubts=_PARTS_DOUBT),)


def _figures(target: Target, bandwidth: float, rates: dict[Precision, float]) -> tuple[Figure, ...]:
    def doubts(field: str) -> tuple[Doubt, ...]:
        return target.doubts_about(field)

    return (
        Figure(
            name="memory bandwidth",
            value=bandwidth,
            unit="GB/s",
            doubts=doubts("memory.bandwidth_gb_s"),
        ),
        *(
            Figure(name=f"{p} rate", value=rates[p], unit="TFLOP/s", doubts=doubts(f"rates.{p}"))
            for p in sorted(rates)
        ),
        Figure(name="share of the bandwidth", value=BANDWIDTH_SHARE, unit="", doubts=_SHARE_DOUBT),
        Figure(name="share of the rate", value=RATE_SHARE, unit="", doubts=_SHARE_DOUBT),
        Figure(name="a launch", value=LAUNCH_S * 1e6, unit="us", doubts=_LAUNCH_DOUBT),
    )
