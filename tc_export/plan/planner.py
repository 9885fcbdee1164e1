# SPDX-License-Identifier: Apache-2.0
"""Whether a model fits a device, how many frames do, and what would help where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tc_export.config import ModelConfig
from tc_export.errors import UsageError
from tc_export.plan.build_cost import BuildCost, build_cost
from tc_export.plan.host import host_memory
from tc_export.plan.memory import Workload, memory_by_part
from tc_export.plan.roofline import Times, predict_times
from tc_export.targets import Precision, Precisions, Target

TEXT_ROOM_TOKENS = 512
"""Tokens that a profile leaves for text where no length is asked for, as the build does."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change, and what it would give: computed, and no promise that a build offers it."""

    change: str
    total_bytes: int  # at the frames asked for, or at `max_frames` where those do not fit
    max_frames: int
    fits: bool  # the frames asked for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked, and what it would take. Bytes are on the device."""

    target: Target
    config: ModelConfig
    workload: Workload
    max_length: int | None  # as it was asked for
    limit_bytes: int
    bytes_by_part: dict[str, int]
    max_frames: int
    limited_by: str  # memory, or the length of the context
    times: Times | None
    build: BuildCost
    suggestions: tuple[Suggestion, ...]

    @property
    def total_bytes(self) -> int:
        """The predicted peak on the device, with what its system takes."""
        return sum(self.bytes_by_part.values())

    @property
    def fits(self) -> bool:
        """True where the device has room for all of it."""
        return self.total_bytes <= self.limit_bytes


def make_plan(
    config: ModelConfig,
    target: Target,
    precisions: Precisions,
    frames: int,
    max_length: int | None = None,
) -> Plan:
    """Plan for `frames` frames and `max_length` tokens; None leaves room for text.

    Raises:
        UsageError: the frames do not fit the length, or the length exceeds the model's context.
        EnvironmentLacks: the target is this host, and it does not say how much memory it has.
    """
    workload = Workload(
        frames=frames,
        length=profile_length(config, frames, max_length),
        precisions=precisions,
    )
    limit = memory_limit(target)
    bytes_by_part = memory_by_part(config, target, workload)
    most, limited_by = most_frames(config, target, workload, max_length, limit)
    return Plan(
        target=target,
        config=config,
        workload=workload,
        max_length=max_length,
        limit_bytes=limit,
        bytes_by_part=bytes_by_part,
        max_frames=most,
        limited_by=limited_by,
        times=predict_times(config, target, workload),
        build=build_cost(config, target, precisions),
        suggestions=()
        if sum(bytes_by_part.values()) <= limit
        else tuple(_suggestions(config, target, workload, max_length, limit)),
    )


def memory_limit(target: Target) -> int:
    """Bytes that the device has, its system's part included."""
    gb = target.memory.usable_gb or target.memory.total_gb
    return host_memory().total if gb is None else round(gb * 1e9)


def profile_length(config: ModelConfig, frames: int, max_length: int | None) -> int:
    """Rows of the cache for so many frames: what a build would choose.

    Raises:
        UsageError: the frames do not fit the length, or the length exceeds the model's context.
    """
    context = config.text.max_position_embeddings
    visual = frames * config.tokens_per_frame
    length = min(visual + TEXT_ROOM_TOKENS, context) if max_length is None else max_length
    if length > context:
        raise UsageError(
            f"--max-length {length} exceeds the model's context of {context} tokens",
            hint=f"use at most --max-length {context}",
        )
    if visual >= length:
        raise UsageError(
            f"{frames} frames of {config.tokens_per_frame} tokens are {visual} tokens, and "
            f"{length} tokens are all that there is room for, text included",
            hint=f"frames that have room: {(length - 1) // config.tokens_per_frame}",
        )
    return length


def most_frames(
    config: ModelConfig,
    target: Target,
    workload: Workload,
    max_length: int | None,
    limit_bytes: int,
) -> tuple[int, str]:
    """The most frames that fit, from 0, and what stops there: `memory` or `context`."""
    room = max_length or config.text.max_position_embeddings
    possible = (room - 1) // config.tokens_per_frame

    def fits(frames: int) -> bool:
        length = profile_length(config, frames, max_length)
        asked = replace(workload, frames=frames, length=length)
        return sum(memory_by_part(config, target, asked).values()) <= limit_bytes

    most = _largest(fits, possible)
    return most, "context" if most == possible else "memory"


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which `holds`; 0 where it holds for none.

    What holds for a number holds for all smaller ones: a frame more never takes less memory.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _suggestions(
    config: ModelConfig,
    target: Target,
    workload: Workload,
    max_length: int | None,
    limit: int,
) -> Iterator[Suggestion]:
    """Changes with which at least one frame fits, computed one by one."""
    int4 = replace(workload, decoder_weights=Precision.INT4)
    changes = [("fewer frames", workload)]
    changes += [("KV cache in 8 bits", replace(workload, kv_bytes=1.0))]
    if Precision.INT4 in target.precisions:
        changes += [
            ("INT4 weights in the decoder", int4),
            ("INT4 weights and KV cache in 8 bits", replace(int4, kv_bytes=1.0)),
        ]
    for change, changed in changes:
        most, _ = most_frames(config, target, changed, max_length, limit)
        if not most:
            continue
        frames = min(most, workload.frames)
        length = profile_length(config, frames, max_length)
        reached = replace(changed, frames=frames, length=length)
        yield Suggestion(
            change=change,
            total_bytes=sum(memory_by_part(config, target, reached).values()),
            max_frames=most,
            fits=most >= workload.frames,
        )
