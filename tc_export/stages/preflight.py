# SPDX-License-Identifier: Apache-2.0
"""What is refused before any work: what cannot end well on this machine or on the device."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError

from tc_export.bundle import Profile
from tc_export.config import KvFormat, ModelConfig
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.plan.build_cost import BuildCost, build_cost
from tc_export.plan.planner import profile_length
from tc_export.plan.units import spell_bytes
from tc_export.recipes import Recipe
from tc_export.stages.tools import RTX_BUILDER, versions
from tc_export.targets import Precisions, Target

PLUGIN_HEAD_SIZES = (64, 80, 96, 128, 256)
"""Head sizes that the CUDA attention kernel is compiled for (plugins/kernels)."""


def choose_profile(config: ModelConfig, max_frames: int, max_length: int | None) -> Profile:
    """The largest input that the engines shall take.

    Raises:
        UsageError: the frames do not fit the length, or the length exceeds the model's context.
    """
    length = profile_length(config, max_frames, max_length)
    return Profile(max_frames=max_frames, max_length=length)


def check_possible(
    config: ModelConfig,
    target: Target,
    precisions: Precisions,
    *,
    parts: int = 1,
    recipe: Recipe | None = None,
    check_parity: bool,
) -> None:
    """Refuse what the device's kernels do not know, and what this machine cannot build.

    Raises:
        UsageError: the device's kernels do not have the model's head size.
        UnsupportedEnvironment: what builds the engines is not installed, or a step of the build
            needs more memory than this machine has.
    """
    _check_head_size(config.text.head_dim, target)
    _check_cache(config, target)
    if target.toolchain.engine == "tensorrt-rtx":
        _check_installed(RTX_BUILDER, "rtx")
    cost = build_cost(config, target, precisions, parts, recipe=recipe)
    _check_memory(cost, check_parity=check_parity)


def check_mask(config: ModelConfig, target: Target) -> None:
    """Refuse a mask that the plugins cannot serve. It is known once the checkpoint is open.

    Raises:
        UsageError: it is no prefix of the keys.
    """
    if target.sm is not None and not config.temporal.mask.is_prefix:
        raise UsageError(
            f"the mask {config.temporal.mask} is no prefix of the keys, which the plugins need",
            hint="it is there for comparisons: use --target cpu",
        )


def _check_head_size(head_size: int, target: Target) -> None:
    if target.sm is not None and head_size not in PLUGIN_HEAD_SIZES:
        raise UsageError(
            f"the decoder's heads have {head_size} channels, and the CUDA kernels know "
            f"{', '.join(map(str, PLUGIN_HEAD_SIZES))}",
            hint="--target cpu runs any head size",
        )


def _check_cache(config: ModelConfig, target: Target) -> None:
    if target.sm is not None and config.cache.kv is not KvFormat.OWN:
        raise UsageError(
            f"{target.name} cannot have its cache in {config.cache.kv} yet: the kernels for GPUs "
            "are not proven",
            hint="--kv 16 is a cache in the decoder's own format; --target cpu has both",
        )


def _check_installed(packages: Iterable[str], extra: str) -> None:
    try:
        versions(packages)
    except PackageNotFoundError as error:
        raise UnsupportedEnvironment(
            f"the package {error.name} is not installed, which builds this target's engines",
            hint=f"pip install 'tc-export[{extra}]'",
        ) from error


def _check_memory(cost: BuildCost, *, check_parity: bool) -> None:
    steps = {
        step: nbytes
        for step, nbytes in cost.peak_by_step.items()
        if check_parity or step != "parity"
    }
    worst = max(steps, key=lambda step: steps[step])
    if cost.host_bytes is not None and steps[worst] > cost.host_bytes:
        raise UnsupportedEnvironment(
            f"the build's step {worst!r} would take {spell_bytes(steps[worst])} of memory, and "
            f"this machine has {spell_bytes(cost.host_bytes)}",
            hint="--no-parity leaves the comparison with PyTorch out"
            if worst == "parity"
            else "build on a larger machine; tc-export plan shows every step",
        )
