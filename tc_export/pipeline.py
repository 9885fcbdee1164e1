# SPDX-License-Identifier: Apache-2.0
"""The whole build as one ordered list of stages: read this first.

Stages meet through files in the bundle under construction, and through nothing else. A stage runs
again only when something that its result depends on has changed; a killed build resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tc_export.bundle import (
    Description,
    EngineRecord,
    EngineState,
    Facts,
    Manifest,
    Profile,
    open_staging,
    read_manifest,
)
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.engine.loading import (
    DECODER,
    EMBEDDING_FILE,
    ONNX_RUNTIME,
    VISION,
    Engines,
    load_engines,
)
from tc_export.errors import CheckFailed, CheckpointError, UsageError
from tc_export.graph.export import GraphReport, export_decoder, export_embedding, export_vision
from tc_export.parity.check import ParityResult, Side, check_parity
from tc_export.parity.report import failures, write_report
from tc_export.parity.scenario import standard_scenarios
from tc_export.plan.planner import profile_length
from tc_export.runtime.video_language_model import check_engine
from tc_export.stages import Reporter, Stage, StageContext, run_stages

PRECISION = "float32"
DEFAULT_MAX_FRAMES = 16
ASSETS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a checkpoint that a bundle carries unchanged, as far as they are there."""

PARITY_STEPS = 3
"""Steps that a parity scenario reports: vision, decoder, answer."""

BUILDERS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the user asks for. `max_length` is in tokens; None takes a default."""

    checkpoint: Path
    output: Path
    target: str = "cpu"
    max_frames: int = DEFAULT_MAX_FRAMES
    max_length: int | None = None
    temporal: Mapping[str, Any] = field(default_factory=dict)
    check_parity: bool = True


def build(
    request: BuildRequest,
    reporter: Reporter,
    on_opened: Callable[[Checkpoint, Profile], None] = lambda checkpoint, profile: None,
) -> Manifest:
    """Build a bundle, or bring an existing one up to date.

    `on_opened` is called once the checkpoint has been read and found whole.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        UsageError: the request cannot be fulfilled as it stands.
        CheckFailed: the engine does not compute what PyTorch computes; nothing is published.
    """
    if request.target != "cpu":
        raise UsageError(f"the target {request.target!r} is unknown", hint="known targets: cpu")
    checkpoint = open_checkpoint(request.checkpoint, request.temporal)
    profile = choose_profile(checkpoint, request.max_frames, request.max_length)
    on_opened(checkpoint, profile)
    with open_staging(request.output) as staging:
        description = Description(
            target=request.target,
            checkpoint_digest=checkpoint.digest(),
            profile=profile,
            precision_asked=PRECISION,
            tools={name: version(name) for name in ("tc-export", *BUILDERS)},
        )
        stages = plan_stages(checkpoint, description, check_parity=request.check_parity)
        return run_stages(staging, stages, description, reporter)


def choose_profile(checkpoint: Checkpoint, max_frames: int, max_length: int | None) -> Profile:
    """The largest input that the engines shall take.

    Raises:
        UsageError: the frames do not fit the length, or the length exceeds the model's context.
    """
    length = profile_length(checkpoint.config.model, max_frames, max_length)
    return Profile(max_frames=max_frames, max_length=length)


def plan_stages(
    checkpoint: Checkpoint, description: Description, *, check_parity: bool
) -> list[Stage]:
    """The build for the target `cpu`, in order."""
    digest = description.checkpoint_digest
    exported = {"checkpoint": digest, "precision": PRECISION, "tools": description.tools}
    profile = description.profile.model_dump()
    stages = [
        Stage(
            name="weights",
            description="check the weights",
            key={"checkpoint": digest},
            outputs=(),
            run=lambda context: checkpoint.check_values(context.advance),
        ),
        Stage(
            name="assets",
            description="copy configuration and tokenizer",
            key={"checkpoint": digest, "files": _asset_digests(checkpoint), "profile": profile},
            outputs=("config.json", *_assets(checkpoint)),
            run=lambda context: _write_assets(context, checkpoint, description),
        ),
        Stage(
            name="embedding",
            description="write the token embedding",
            key=exported,
            outputs=(EMBEDDING_FILE,),
            run=lambda context: _export_embedding(context, checkpoint),
        ),
        Stage(
            name="vision",
            description="export the vision graph",
            key=exported,
            outputs=(VISION,),
            run=lambda context: _export_graph(context, checkpoint, VISION, export_vision),
        ),
        Stage(
            name="decoder",
            description="export the decoder graph",
            key=exported,
            outputs=(DECODER,),
            run=lambda context: _export_graph(context, checkpoint, DECODER, export_decoder),
        ),
        Stage(
            name="engine",
            description="load the engines",
            key={"tools": description.tools},
            outputs=(),
            needs=("vision", "decoder"),
            run=_check_engine,
        ),
    ]
    if check_parity:
        stages.append(
            Stage(
                name="parity",
                description="compare with PyTorch",
                key={"profile": profile, "tools": description.tools},
                outputs=("parity",),
                needs=("assets", "embedding", "vision", "decoder", "engine"),
                run=lambda context: _check_parity(context, checkpoint, description.profile),
            )
        )
    return stages


def _assets(checkpoint: Checkpoint) -> list[str]:
    return [name for name in ASSETS if (checkpoint.folder / name).is_file()]


def _asset_digests(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        name: sha256((checkpoint.folder / name).read_bytes()).hexdigest()
        for name in _assets(checkpoint)
    }


def _write_assets(context: StageContext, checkpoint: Checkpoint, description: Description) -> None:
    """Copy the small files, and state in `config.json` every setting that was left to us."""
    for name in _assets(checkpoint):
        shutil.copyfile(checkpoint.folder / name, context.path(name))
    model = checkpoint.config.model
    document = {
        **checkpoint.config.document,
        "temporal": model.temporal.model_dump(mode="json"),
        "pooling": model.pooling.model_dump(mode="json"),
        "builder_config": {
            "target": description.target,
            "checkpoint": str(checkpoint.folder.resolve()),
            "precision": description.precision_asked,
            **description.profile.model_dump(),
        },
    }
    context.path("config.json").write_text(json.dumps(document, indent=2) + "\n")


def _export_embedding(context: StageContext, checkpoint: Checkpoint) -> None:
    export_embedding(checkpoint, _dtype(), context.path(EMBEDDING_FILE))


Exporter = Callable[[Checkpoint, torch.dtype, Path, Callable[[int], None]], GraphReport]


def _export_graph(
    context: StageContext, checkpoint: Checkpoint, name: str, export: Exporter
) -> Facts:
    folder = context.folder / name
    folder.mkdir(parents=True)
    prefix = "vision." if name == VISION else "decoder."
    total = sum(
        tensor.nbytes for key, tensor in checkpoint.tensors.items() if key.startswith(prefix)
    )
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        context.advance(done, total)

    report = export(checkpoint, _dtype(), folder, advance)
    return Facts(precision_realised={name: PRECISION}, custom_nodes={name: report.custom_nodes})


def _check_engine(context: StageContext) -> Facts:
    """Load the graphs as any runtime would, without our library."""
    load_engines(context.folder, {}, native=False)
    return Facts(engine=EngineRecord(backend=ONNX_RUNTIME, state=EngineState.BUILT))


def _check_parity(context: StageContext, checkpoint: Checkpoint, profile: Profile) -> None:
    engines = load_engines(context.folder, {}, native=False)
    result = compare_with_pytorch(engines, checkpoint, profile, context.advance)
    folder = context.folder / "parity"
    folder.mkdir()
    write_report(result, folder)
    if not result.passed:
        raise CheckFailed(
            "the engine does not compute what PyTorch computes:\n"
            + "\n".join(f"  {line}" for line in failures(result)),
            hint="nothing was published",
        )


def check_bundle(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    native: bool | None = None,
    threads: int | None = None,
) -> ParityResult:
    """Compare a published bundle's engine with the PyTorch model that it was built from.

    `checkpoint` is where that is now; by default where it was at the build.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
    """
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    engines = load_engines(bundle, manifest.custom_nodes, native=native, threads=threads)
    return compare_with_pytorch(engines, opened, manifest.profile)


def open_with_checkpoint(bundle: Path, checkpoint: Path | None) -> tuple[Manifest, Checkpoint]:
    """Read a bundle's manifest, and open the checkpoint that it was built from.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
    """
    manifest = read_manifest(bundle)
    check_engine(bundle, manifest)
    config = read_config(bundle)
    source = checkpoint or Path(config.document["builder_config"]["checkpoint"])
    if not source.is_dir():
        raise CheckpointError(
            f"the checkpoint that {bundle} was built from is not at {source}",
            hint="say where it is now: --checkpoint DIR",
        )
    opened = open_checkpoint(source, config.model.temporal.model_dump())
    if opened.digest() != manifest.checkpoint_digest:
        raise CheckpointError(
            f"{source} is not the checkpoint that {bundle} was built from, or it has changed since",
            hint="give that one with --checkpoint DIR, or build the bundle again",
        )
    return manifest, opened


def compare_with_pytorch(
    engines: Engines,
    checkpoint: Checkpoint,
    profile: Profile,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> ParityResult:
    """Run every parity scenario that the profile has room for."""
    config = checkpoint.config.model
    scenarios = standard_scenarios(config, profile.max_frames, profile.max_length)
    done = 0

    def step(phrase: str) -> None:
        nonlocal done
        done += 1
        advance(done, PARITY_STEPS * len(scenarios))

    side = Side(name=engines.decoder.backend, vision=engines.vision, decoder=engines.decoder)
    return check_parity(config, checkpoint.load_model, side, PRECISION, scenarios, step)


def _dtype() -> torch.dtype:
    dtype: torch.dtype = getattr(torch, PRECISION)
    return dtype
