# SPDX-License-Identifier: Apache-2.0
"""Compares a bundle's engine, or its graphs, tensor by tensor with the checkpoint in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tc_export.bundle import Profile
from tc_export.checkpoint.reader import Checkpoint
from tc_export.engine.loading import Engines
from tc_export.parity.judged_bundle import judged_engines, open_with_checkpoint
from tc_export.parity.tensors.check import ParityResult, Side, check_parity
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.targets import Precisions

STEPS = 3
"""Steps that a scenario reports: vision, decoder, answer."""


def check_bundle(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
) -> ParityResult:
    """Compare a published bundle with the PyTorch model that it was built from.

    Args:
        bundle: what is judged.
        checkpoint: where that is now; by default where it was at the build.
        graphs: judge the exported graphs in ONNX Runtime, and not the engine.
        native: see `load_engines`.
        threads: CPU threads of each engine.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
        EnvironmentLacks: this machine cannot run the engine.
    """
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    engines = judged_engines(bundle, manifest, graphs=graphs, native=native, threads=threads)
    precisions = Precisions.model_validate(manifest.precision_asked)
    return compare_with_pytorch(engines, opened, manifest.profile, precisions)


def compare_with_pytorch(
    engines: Engines,
    checkpoint: Checkpoint,
    profile: Profile,
    precisions: Precisions,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> ParityResult:
    """Run every parity scenario that the profile has room for."""
    config = checkpoint.config.model
    scenarios = standard_scenarios(config, profile.max_frames, profile.max_length)
    done = 0

    def step(phrase: str) -> None:
        nonlocal done
        done += 1
        advance(done, STEPS * len(scenarios))

    side = Side(name=engines.decoder.backend, vision=engines.vision, decoder=engines.decoder)
    return check_parity(config, checkpoint.load_model, side, precisions, scenarios, step)
