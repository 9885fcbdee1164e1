# SPDX-License-Identifier: Apache-2.0
"""In how many parts the decoder's engines are built, so that building fits into memory.

TensorRT's builder takes a multiple of the weights of what it builds. A decoder in parts is built a
part at a time, each in a process of its own, at the price of a few launches a part in every step.
"""

from __future__ import annotations

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import DECODER
from tc_export.contracts.parts import even_parts
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.plan.host import host_memory
from tc_export.plan.memory import BYTES
from tc_export.plan.parameters import few_bits, head_matrix, layer_weights
from tc_export.plan.units import spell_bytes
from tc_export.recipes import Recipe
from tc_export.targets import Precision, Target

BUILDER_BASE_BYTES, BUILDER_BYTES_PER_WEIGHT_BYTE = 500_000_000, 3.05
"""Fitted to two builds by TensorRT-RTX 1.7 with one profile, in float16: a decoder of 227 MB peaked
at 1.2 GB, one of 2.06 GB at 6.8 GB. Standard TensorRT is assumed to take as much."""

SHARE_OF_HOST = 2 / 3
"""Of the memory that this machine has, and not of what is free: so that the number of parts, and
with it what was built before, stays the same from one build to the next."""


def builder_bytes(weight_bytes: float) -> float:
    """The peak of TensorRT's builder."""
    return BUILDER_BASE_BYTES + BUILDER_BYTES_PER_WEIGHT_BYTE * weight_bytes


FEW_BITS_BYTE = 1.21
"""What a byte of weights in few bits counts as. Measured: a whole 7B decoder in four bits, 3.44 GB
of them and 0.26 GB in float16, peaked at 14.0 GB, all processes together."""


def largest_part(
    config: ModelConfig, parts: int, precision: Precision, recipe: Recipe | None = None
) -> float:
    """Bytes of matrices in the part that has the most: of so many layers, or with the head.

    Those in few bits are counted as the builder takes them.
    """
    layers, few = config.text.num_hidden_layers, few_bits(config, DECODER, recipe)
    whole = layers * layer_weights(config) - few.numbers
    layer = (whole * BYTES[precision] + FEW_BITS_BYTE * few.nbytes) / layers
    head = head_matrix(config) * BYTES[precision]
    cut = even_parts(layers, parts)
    return max(len(cut[0].layers) * layer, len(cut[-1].layers) * layer + head)


def choose_parts(
    config: ModelConfig,
    target: Target,
    precision: Precision,
    asked: int | None = None,
    memory_bytes: int | None = None,
    recipe: Recipe | None = None,
) -> int:
    """How many engines the decoder becomes: `asked`, or as few as memory allows.

    TensorRT-RTX builds on this machine, within `memory_bytes`: None takes two thirds of what the
    machine has. TensorRT builds on the device, within the memory that it shares with its processor;
    what the host of a card with memory of its own has is not known, and there it is one.

    Raises:
        UsageError: more parts are asked for than there are layers; or parts for the processor,
            where nothing is built.
        UnsupportedEnvironment: a part of one layer takes more than there is.
    """
    layers = config.text.num_hidden_layers
    if target.toolchain.engine == "onnxruntime":
        if asked not in (None, 1):
            raise UsageError(
                f"--parts {asked} is for engines that are built, and {target.name} runs the graphs "
                "themselves",
                hint="leave --parts out",
            )
        return 1
    if asked is not None:
        if not 1 <= asked <= layers:
            raise UsageError(
                f"--parts {asked} cannot be: the decoder has {layers} layers",
                hint=f"use 1 to {layers}, or auto",
            )
        return asked
    limit = _limit(target, memory_bytes)
    fitting = (
        parts
        for parts in range(1, layers + 1)
        if limit is None or builder_bytes(largest_part(config, parts, precision, recipe)) <= limit
    )
    found = next(fitting, None)
    if found is not None:
        return found
    if target.toolchain.engine == "tensorrt":
        return layers  # it may yet fit: what standard TensorRT takes is assumed
    least = builder_bytes(largest_part(config, layers, precision, recipe))
    raise UnsupportedEnvironment(
        f"building the decoder's engine takes {spell_bytes(round(least))} for a part of one layer, "
        f"and may take {spell_bytes(limit or 0)}",
        hint="give it more with --memory, or build for a device with more memory",
    )


def _limit(target: Target, memory_bytes: int | None) -> int | None:
    """What building may take where it happens; None where that is not known."""
    if target.toolchain.engine == "tensorrt-rtx":
        if memory_bytes is not None:
            return memory_bytes
        try:
            return round(host_memory().total * SHARE_OF_HOST)
        except UnsupportedEnvironment:
            return None
    usable = target.memory.usable_gb or target.memory.total_gb
    if usable is None or not target.memory.unified:
        return None
    return round((usable - target.memory.os_reserve_gb) * 1e9)
