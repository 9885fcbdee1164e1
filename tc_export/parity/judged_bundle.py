# SPDX-License-Identifier: Apache-2.0
"""A published bundle that is to be judged: its checkpoint, its engines, and what it has room for.

What can be refused is refused without PyTorch: a wrong path need not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tc_export.bundle import Manifest, open_bundle, read_manifest
from tc_export.checkpoint.hf_config import read_config
from tc_export.errors import CheckpointError, UsageError
from tc_export.targets import Precisions
from tc_export.tasks.clips import STEPS

if TYPE_CHECKING:
    from tc_export.checkpoint.reader import Checkpoint
    from tc_export.engine.loading import Engines


def find_checkpoint(bundle: Path, checkpoint: Path | None = None) -> Path:
    """The folder of the checkpoint that a bundle was built from; `checkpoint` where it is now.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone.
    """
    open_bundle(bundle)
    source = checkpoint or Path(read_config(bundle).document["builder_config"]["checkpoint"])
    if not source.is_dir():
        raise CheckpointError(
            f"the checkpoint that {bundle} was built from is not at {source}",
            hint="say where it is now: --checkpoint DIR",
        )
    return source


def check_quantised(bundle: Path, options: Sequence[str], unquantised: Path | None) -> None:
    """See that options about the cost of quantising are for a bundle that has one.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: `unquantised` is given, and is no folder.
        UsageError: there are such options, and the bundle's weights are not quantised.
    """
    if options and read_config(bundle).document.get("quantization_config") is None:
        verb = "apply" if len(options) > 1 else "applies"
        raise UsageError(
            f"{', '.join(options)} {verb} where weights are quantised, and those of {bundle} are "
            "not",
            hint=f"leave {', '.join(options)} out",
        )
    if unquantised is not None and not unquantised.is_dir():
        found = "is a file" if unquantised.exists() else "does not exist"
        raise CheckpointError(
            f"the unquantised checkpoint {unquantised} {found}; expected a folder",
            hint="give the checkpoint that was quantised",
        )


def open_with_checkpoint(bundle: Path, checkpoint: Path | None) -> tuple[Manifest, Checkpoint]:
    """Read a bundle's manifest, and open the checkpoint that it was built from.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
    """
    from tc_export.checkpoint.reader import open_checkpoint

    source = find_checkpoint(bundle, checkpoint)
    manifest = read_manifest(bundle)
    opened = open_checkpoint(source, read_config(bundle).model.settings)
    if opened.digest() != manifest.checkpoint_digest:
        raise CheckpointError(
            f"{source} is not the checkpoint that {bundle} was built from, or it has changed since",
            hint="give that one with --checkpoint DIR, or build the bundle again",
        )
    return manifest, opened


def check_room_for_clips(bundle: Path) -> None:
    """See that a bundle takes the clips of the generated questions.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: its profile is too small for them.
    """
    most = read_manifest(bundle).profile.max_frames
    if most < STEPS:
        raise UsageError(
            f"the clips of the tasks have {STEPS} frames, and {bundle} takes {most}",
            hint=f"build it with --max-frames {STEPS} or more",
        )


def judged_engines(
    bundle: Path, manifest: Manifest, *, graphs: bool, native: bool | None, threads: int | None
) -> Engines:
    """The bundle's engines, or its graphs in ONNX Runtime.

    Raises:
        BundleError: an engine or a graph cannot be loaded.
        UnsupportedEnvironment: this machine cannot run the engines.
    """
    from tc_export.parity.graph_engines import load_graphs
    from tc_export.runtime.answering import open_engines

    if graphs:
        precisions = Precisions.model_validate(manifest.precision_asked)
        return load_graphs(bundle, precisions, threads=threads)
    return open_engines(bundle, manifest, native=native, threads=threads)
