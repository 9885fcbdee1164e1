# SPDX-License-Identifier: Apache-2.0
"""Whether a model fits a device, how many frames do, and what would help where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tc_export.config import CacheConfig, KvFormat, ModelConfig
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.model.weight_shapes import weight_shapes
from tc_export.plan.build_cost import BuildCost, build_cost
from tc_export.plan.host import host_memory
from tc_export.plan.memory import Workload, memory_by_part
from tc_export.plan.parts import choose_parts
from tc_export.plan.roofline import Times, predict_times
from tc_export.recipes import Recipe, list_recipes, reason_against
from tc_export.targets import Precisions, Target, choose_release, list_targets

TEXT_ROOM_TOKENS = 512
"""Tokens that a profile leaves for text where no length is asked for, as the build does."""

QUESTION_TOKENS, ANSWER_TOKENS = 64, 128
"""What the most frames leave room for: a short question in its template, and an answer of the
length that `tc-export ask` allows."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change that a build can make, and what it would give."""

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
    text_tokens: int  # that question and answer need
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

    @property
    def text_room(self) -> int:
        """Tokens that the frames asked for leave for text."""
        return self.workload.length - self.workload.frames * self.config.tokens_per_frame


def make_plan(
    config: ModelConfig,
    target: Target,
    precisions: Precisions,
    frames: int,
    max_length: int | None = None,
    *,
    text_tokens: int = QUESTION_TOKENS + ANSWER_TOKENS,
    parts: int | None = None,
    memory_bytes: int | None = None,
    recipe: Recipe | None = None,
) -> Plan:
    """Plan for `frames` frames and `max_length` tokens; None leaves room for text.

    The most frames are those that leave room for `text_tokens` of question and answer. `parts` and
    `memory_bytes` are as a build takes them: `tc_export.plan.parts`. `recipe` is what the weights
    are quantised by.

    Raises:
        UsageError: the frames do not fit the length, the length exceeds the model's context, or so
            many parts cannot be.
        UnsupportedEnvironment: the target is this host, and it does not say how much memory it has.
    """
    workload = Workload(
        frames=frames,
        length=profile_length(config, frames, max_length),
        precisions=precisions,
        parts=_parts(config, target, precisions, parts, memory_bytes, recipe),
        recipe=recipe,
    )
    limit = memory_limit(target)
    bytes_by_part = memory_by_part(config, target, workload)
    asked = FramesAsked(
        config, target, workload, max_length, text_tokens, parts_asked=parts, memory=memory_bytes
    )
    most, limited_by = most_frames(asked, limit)
    return Plan(
        target=target,
        config=config,
        workload=workload,
        max_length=max_length,
        text_tokens=text_tokens,
        limit_bytes=limit,
        bytes_by_part=bytes_by_part,
        max_frames=most,
        limited_by=limited_by,
        times=predict_times(config, target, workload),
        build=build_cost(config, target, precisions, workload.parts, workload.length, recipe),
        suggestions=()
        if sum(bytes_by_part.values()) <= limit
        else tuple(_suggestions(asked, limit)),
    )


def _parts(
    config: ModelConfig,
    target: Target,
    precisions: Precisions,
    asked: int | None,
    memory_bytes: int | None,
    recipe: Recipe | None,
) -> int:
    """As a build chooses; where this machine has too little for it, as many as there can be."""
    try:
        return choose_parts(config, target, precisions.decoder, asked, memory_bytes, recipe)
    except UnsupportedEnvironment:
        return config.text.num_hidden_layers


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


@dataclass(frozen=True)
class FramesAsked:
    """What the most frames are looked for with."""

    config: ModelConfig
    target: Target
    workload: Workload
    max_length: int | None  # None: as long as the frames need, within the context
    text_tokens: int  # that must be left
    parts_asked: int | None = None  # as a build is asked for them, and the memory that it may take
    memory: int | None = None

    def on(self, device: Target) -> FramesAsked:
        """The same on another device."""
        return replace(self, target=device)._in_parts()

    def quantized_by(self, recipe: Recipe) -> FramesAsked:
        """The same with weights in few bits."""
        return replace(self, workload=replace(self.workload, recipe=recipe))._in_parts()

    def _in_parts(self) -> FramesAsked:
        """With as many parts as a build makes of it."""
        ask = self.workload
        parts = _parts(
            self.config, self.target, ask.precisions, self.parts_asked, self.memory, ask.recipe
        )
        return replace(self, workload=replace(ask, parts=parts))

    @property
    def most_in_context(self) -> int:
        """The most frames that leave room for question and answer in the cache or the context."""
        room = self.max_length or self.config.text.max_position_embeddings
        return max(0, room - self.text_tokens) // self.config.tokens_per_frame

    def total_bytes(self, frames: int) -> int:
        """What so many frames take on the device."""
        length = profile_length(self.config, frames, self.max_length)
        changed = replace(self.workload, frames=frames, length=length)
        return sum(memory_by_part(self.config, self.target, changed).values())


def most_frames(asked: FramesAsked, limit_bytes: int) -> tuple[int, str]:
    """The most frames that fit, from 0, and what stops there: `memory` or `context`."""
    possible = asked.most_in_context
    most = _largest(lambda frames: asked.total_bytes(frames) <= limit_bytes, possible)
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


def _suggestions(asked: FramesAsked, limit: int) -> Iterator[Suggestion]:
    """Changes that a build can make and with which at least one frame fits, one by one."""
    yield from _suggestion("fewer frames", asked, limit)
    if asked.max_length is not None:
        shorter = replace(asked, max_length=None)
        if profile_length(asked.config, asked.workload.frames, None) < asked.max_length:
            yield from _suggestion("no --max-length: as long as the frames need", shorter, limit)
    on_cpu = asked.target.toolchain.engine == "onnxruntime"  # builds for others refuse it
    is_plain = asked.config.cache.kv is KvFormat.OWN
    if on_cpu and is_plain and asked.config.temporal.mask.is_prefix:
        in_int8 = CacheConfig(kv=KvFormat.INT8)
        smaller = asked.config.model_copy(update={"cache": in_int8})
        yield from _suggestion(f"--kv {in_int8.kv}", replace(asked, config=smaller), limit)
    for recipe in _recipes(asked):
        yield from _suggestion(f"--quantize {recipe.name}", asked.quantized_by(recipe), limit)
    for device in _larger_devices(asked.target):
        yield from _suggestion(f"--target {device.name}", asked.on(device), memory_limit(device))


def _suggestion(change: str, asked: FramesAsked, limit: int) -> Iterator[Suggestion]:
    most, _ = most_frames(asked, limit)
    if most:
        fits = asked.total_bytes(asked.workload.frames) <= limit
        frames = asked.workload.frames if fits else most
        yield Suggestion(
            change=change, total_bytes=asked.total_bytes(frames), max_frames=most, fits=fits
        )


def _recipes(asked: FramesAsked) -> list[Recipe]:
    """Shipped recipes that device and model take; none where weights are quantised already."""
    if asked.workload.recipe is not None:
        return []
    release = choose_release(asked.target, None)
    return [
        recipe
        for recipe in list_recipes()
        if reason_against(recipe, asked.target, release) is None
        and all(
            shape[-1] % (rule.group_size or 1) == 0
            for name, shape in weight_shapes(asked.config).items()
            if (rule := recipe.rule(name))
        )
    ]


def _larger_devices(target: Target) -> list[Target]:
    """Shipped targets whose engines the same TensorRT builds, with more memory, smallest first."""
    if target.toolchain.engine == "onnxruntime":
        return []
    here = memory_limit(target)
    others = [
        other
        for other in list_targets()
        if other.toolchain.engine == target.toolchain.engine
        and other.toolchain.architecture == target.toolchain.architecture
        and memory_limit(other) > here
    ]
    return sorted(others, key=memory_limit)
