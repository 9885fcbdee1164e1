# SPDX-License-Identifier: Apache-2.0
"""Memory that building takes on this host, predicted before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.dtypes import DType
from tc_export.errors import UnsupportedEnvironment
from tc_export.plan.build_memory import BASE_BYTES, least_bytes, memory_limits, truth_bytes
from tc_export.plan.host import host_memory
from tc_export.plan.memory import BYTES, RUNTIME_BYTES
from tc_export.plan.parameters import decoder_count, few_bits, vision_count
from tc_export.plan.parts import builder_bytes, largest_part
from tc_export.recipes import Recipe
from tc_export.targets import Precision, Precisions, Target

EXPORTER_BYTES = 500_000_000
"""Measured on x86-64: the build of a model of 0.3 million weights peaked at 0.49 GB without parity
and at 0.52 GB with it."""


COMPILER_BYTES = 1_500_000_000
"""Measured: nvcc at our kernels, all its processes together; beside it the build's own process."""


@dataclass(frozen=True, kw_only=True)
class BuildCost:
    """Peak bytes on this host, by what a build does; the steps run one after the other."""

    peak_by_step: dict[str, int]
    host_bytes: int | None  # None where the system does not say

    @property
    def peak_bytes(self) -> int:
        """The largest of all steps."""
        return max(self.peak_by_step.values())

    @property
    def without_parity_bytes(self) -> int:
        """The largest of all steps but parity, which a build can leave out."""
        return max(nbytes for step, nbytes in self.peak_by_step.items() if step != "parity")

    @property
    def fits(self) -> bool:
        """True where this host has so much memory, or does not say."""
        return self.host_bytes is None or self.peak_bytes <= self.host_bytes


def build_cost(
    config: ModelConfig,
    target: Target,
    precisions: Precisions,
    parts: int = 1,
    max_length: int = 0,
    recipe: Recipe | None = None,
) -> BuildCost:
    """Predict the steps that run on this host; an engine that is built on its device is not one.

    `parts` are those that TensorRT-RTX builds the decoder in, one after the other. `max_length` is
    the profile's, to whose end a comparison goes. `recipe` is what the weights are quantised by.
    """
    vision, few = vision_count(config).total, few_bits(config, VISION, recipe)
    peaks: dict[str, float] = {
        "export": EXPORTER_BYTES,  # weights stay on the disk
        "golden data": truth_bytes(config),
        "parity": _comparison_bytes(config, precisions, max_length, recipe),
    }
    if target.sm is not None:
        peaks["plugins"] = BASE_BYTES + COMPILER_BYTES
    if target.toolchain.engine == "onnxruntime":
        peaks["engine"] = RUNTIME_BYTES["onnxruntime"] + _engines_bytes(config, precisions, recipe)
    if target.toolchain.engine == "tensorrt-rtx":
        peaks["engine"] = max(
            builder_bytes((vision - few.numbers) * BYTES[precisions.vision] + few.nbytes),
            builder_bytes(largest_part(config, parts, precisions.decoder, recipe)),
        )
    return BuildCost(
        peak_by_step={step: round(nbytes) for step, nbytes in peaks.items()},
        host_bytes=_host_bytes(),
    )


def _engines_bytes(config: ModelConfig, precisions: Precisions, recipe: Recipe | None) -> float:
    """Both engines open in ONNX Runtime's processor kernels: weights of few bits are there once,
    with scales in float32."""
    counts = {
        VISION: (vision_count(config).total, precisions.vision),
        DECODER: (decoder_count(config).total, precisions.decoder),
    }
    taken = 0.0
    for graph, (weights, precision) in counts.items():
        few = few_bits(config, graph, recipe, scales=DType.FLOAT32)
        taken += (weights - few.numbers) * _loaded(precision) + few.nbytes
    return taken


def _comparison_bytes(
    config: ModelConfig, precisions: Precisions, max_length: int, recipe: Recipe | None
) -> int:
    """With this host's memory as it is free now; where that is too little, the least it takes."""
    try:
        limits = memory_limits(config, precisions, max_length=max_length, recipe=recipe)
    except UnsupportedEnvironment:
        return least_bytes(config, precisions, max_length, recipe)
    return limits.peak_bytes


def _host_bytes() -> int | None:
    try:
        return host_memory().total
    except UnsupportedEnvironment:
        return None


def _loaded(precision: Precision) -> float:
    """Bytes of a weight in ONNX Runtime's processor kernels, which multiply float32."""
    extra = 0.0 if precision is Precision.FLOAT32 else BYTES[Precision.FLOAT32]
    return BYTES[precision] + extra
