# SPDX-License-Identifier: Apache-2.0
"""What an SM holds, what a device can do, and what follows from it for a kernel, by arithmetic.

Nothing here is measured. `least_us` is the roofline: the time below which a device with these rates
cannot do the operations and move the bytes of a kernel. The kernel will take more.
"""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.targets import Target, list_targets


@dataclass(frozen=True, kw_only=True)
class SmLimits:
    """What one SM holds (CUDA programming guide; NVIDIA's cuda/__device/arch_traits.h)."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    reserved_shared_bytes: int = 1024  # of each block, by the driver


KIB = 1024
LIMITS = {
    80: SmLimits(threads=2048, blocks=32, shared_bytes=164 * KIB),
    86: SmLimits(threads=1536, blocks=16, shared_bytes=100 * KIB),
    87: SmLimits(threads=1536, blocks=16, shared_bytes=164 * KIB),
    89: SmLimits(threads=1536, blocks=24, shared_bytes=100 * KIB),
    90: SmLimits(threads=2048, blocks=32, shared_bytes=228 * KIB),
    100: SmLimits(threads=2048, blocks=32, shared_bytes=228 * KIB),
    110: SmLimits(threads=1536, blocks=24, shared_bytes=228 * KIB),
    120: SmLimits(threads=1536, blocks=24, shared_bytes=100 * KIB),
    121: SmLimits(threads=1536, blocks=24, shared_bytes=100 * KIB),
}


def cuda_targets() -> list[Target]:
    """The devices that kernels are compiled for, from the slowest memory to the fastest."""
    found = [target for target in list_targets() if target.sm is not None]
    return sorted(found, key=lambda target: (target.memory.bandwidth_gb_s or 0, target.name))


def is_doubtful(target: Target) -> bool:
    """Whether the sources of a figure that the roofline uses are weak or conflict."""
    used = ("rates.float16", "memory.bandwidth_gb_s")
    return any(doubt.mark == "uncertain" for field in used for doubt in target.doubts_about(field))


# The workload: one layer, batch 1, 16 frames of 144 tokens after 32 tokens of text and before 32.
TEXT, FRAMES, FRAME_TOKENS = 32, 16, 144
TOKENS = 2 * TEXT + FRAMES * FRAME_TOKENS
Q_HEADS, KV_HEADS = 32, 8
SCALE_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one launch, as the kernel does them."""

    operations: float
    bytes: float


def prefix_lengths() -> list[int]:
    """How many keys each token of the workload sees."""
    before = range(1, TEXT + 1)
    frames = [TEXT + (f + 1) * FRAME_TOKENS for f in range(FRAMES) for _ in range(FRAME_TOKENS)]
    return [*before, *frames, *range(TOKENS - TEXT + 1, TOKENS + 1)]


def work_of(
    kernel: str,
    size: int,
    shape: dict[str, int] | None,
    *,
    element_bytes: int = 2,
    in_int8: bool = False,
) -> Work:
    """What a kernel does for the workload, masked parts of its tiles included.

    `size` is the head size. What stores has no shape: it is taken with heads of 128. `in_int8` says
    that the cache is.
    """
    if kernel == "store_int8":  # k and v are read, codes and scales are written
        return Work(0.0, 2.0 * TOKENS * KV_HEADS * (128 * (element_bytes + 1) + SCALE_BYTES))
    if shape is None:  # q, k and v are read and written once
        return Work(0.0, 2.0 * TOKENS * (Q_HEADS + 2 * KV_HEADS) * 128 * element_bytes)
    if kernel == "merge_splits":
        return Work(0.0, Q_HEADS * (4.0 * shape["splits"] * (size + 2) + 2.0 * size))
    ends = [TOKENS] if kernel == "decode_attention" else prefix_lengths()
    rows = [end for end in ends for _ in range(Q_HEADS // KV_HEADS)]
    blocks = [rows[i : i + shape["rows"]] for i in range(0, len(rows), shape["rows"])]
    tiles = sum(-(-max(block) // shape["keys"]) for block in blocks)
    operations = 4.0 * size * KV_HEADS * tiles * shape["keys"] * shape["rows"]
    cached = size + SCALE_BYTES if in_int8 else 2 * size
    moved = 2.0 * size * 2 * Q_HEADS * len(ends) + 2.0 * KV_HEADS * TOKENS * cached
    return Work(operations, moved)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least time of a kernel on a target, and what bounds it. A prediction."""

    target: str
    least_us: float
    bound: str
    doubtful_figures: bool


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a kernel does for the workload, and the least time of that on each target of an SM."""

    operations: float
    bytes: float
    bounds: list[Bound]


def roofline(sm: int, work: Work) -> Roofline:
    """The bounds on each target that has this SM."""
    bounds = []
    for target in cuda_targets():
        if target.sm != sm:
            continue
        arithmetic_us = work.operations / float(target.rates.float16 or 0) / 1e6
        memory_us = work.bytes / float(target.memory.bandwidth_gb_s or 0) / 1e3
        bounds.append(
            Bound(
                target=target.name,
                least_us=round(max(arithmetic_us, memory_us), 2),
                bound="arithmetic" if arithmetic_us > memory_us else "memory",
                doubtful_figures=is_doubtful(target),
            )
        )
    return Roofline(operations=work.operations, bytes=work.bytes, bounds=bounds)


def occupancy(limits: SmLimits, threads: int, registers: int, shared_bytes: int) -> float:
    """Warps that fit an SM at once, over those that it can hold."""
    warps = threads // 32
    registers_per_warp = -(-registers // 8) * 8 * 32  # handed out in steps of 256
    blocks = min(
        limits.blocks,
        limits.threads // threads,
        limits.registers // (registers_per_warp * warps),
        limits.shared_bytes // (shared_bytes + limits.reserved_shared_bytes),
    )
    return round(blocks * warps / (limits.threads // 32), 3)
