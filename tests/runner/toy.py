# SPDX-License-Identifier: Apache-2.0
"""A toy build of four stages, and a child process to run (and kill) it in.

    graph    a folder of two files, made from a seed
    weights  a hard link to the checkpoint
    engine   made from both; needs them
    report   needs the engine

Each stage adds its name to `runs.log` when it runs, which is how tests count.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tc_export.bundle import (
    BundleSpec,
    EngineRecord,
    EngineState,
    Manifest,
    Placement,
    Profile,
    StageResults,
    open_staging,
)
from tc_export.runner import Reporter, SilentReporter, Stage, StageContext, run_stages

NAMES = ("graph", "weights", "engine", "report")

SPEC = BundleSpec(
    target="cpu",
    checkpoint_digest="0" * 64,
    profile=Profile(max_frames=16, max_length=4096),
    precision_asked={"decoder": "float32"},
    tools={"toy": "1.0"},
)

Tick = Callable[[str], None]


class Toy:
    """A place with a checkpoint, an output folder and a log."""

    def __init__(self, root: Path, placement: Placement = Placement.LINK) -> None:
        self.root = root
        self.placement = placement  # a link is the same on every file system
        self.output = root / "out" / "bundle"
        self.building = root / "out" / ".bundle.building"
        self.checkpoint = root / "checkpoint.bin"
        self.log = root / "runs.log"
        self.output.parent.mkdir(exist_ok=True)
        self.checkpoint.write_bytes(b"weights" * 1000)
        self.log.write_text("")

    def stages(self, seed: int = 1, tick: Tick = lambda name: None) -> list[Stage]:
        def ran(name: str) -> None:
            with self.log.open("a") as log:
                log.write(f"{name}\n")

        def graph(context: StageContext) -> StageResults:
            ran("graph")
            context.path("graph/a.onnx").write_text(f"a {seed}")
            tick("middle of graph")
            context.path("graph/deep/b.onnx").write_text(f"b {seed}")
            return StageResults(custom_nodes={"decoder": {"TcDualRope": 2}})

        def weights(context: StageContext) -> None:
            ran("weights")
            context.place(self.checkpoint, "weights.bin")
            tick("middle of weights")

        def engine(context: StageContext) -> StageResults:
            ran("engine")
            made = b"".join(
                (context.folder / name).read_bytes() for name in ("graph/a.onnx", "weights.bin")
            )
            path = context.path("engine/model.bin")
            with path.open("wb") as file:
                file.write(hashlib.sha256(made).digest())
                file.flush()
                tick("middle of engine")
                file.write(made)
            return StageResults(
                precision_realised={"decoder": "float32"},
                engine=EngineRecord(backend="toy", state=EngineState.BUILT),
            )

        def report(context: StageContext) -> None:
            ran("report")
            size = (context.folder / "engine/model.bin").stat().st_size
            context.path("report.json").write_text(f"[{size}]")
            tick("middle of report")

        return [
            Stage(
                name="graph",
                description="write the graph",
                key={"seed": seed},
                outputs=("graph",),
                run=graph,
            ),
            Stage(
                name="weights",
                description="take the weights",
                key={},
                outputs=("weights.bin",),
                run=weights,
            ),
            Stage(
                name="engine",
                description="build the engine",
                key={"version": 1},
                outputs=("engine/model.bin",),
                needs=("graph", "weights"),
                run=engine,
            ),
            Stage(
                name="report",
                description="write the report",
                key={},
                outputs=("report.json",),
                needs=("engine",),
                run=report,
            ),
        ]

    def build(
        self,
        stages: Sequence[Stage] | None = None,
        *,
        seed: int = 1,
        reporter: Reporter | None = None,
        tick: Tick = lambda name: None,
    ) -> Manifest:
        with open_staging(self.output, self.placement) as staging:
            return run_stages(
                staging,
                stages or self.stages(seed, tick),
                SPEC.model_copy(update={"weights_asked": self.placement}),
                reporter or SilentReporter(),
            )

    def runs(self) -> Counter[str]:
        """How often each stage has run since the last call."""
        counted = Counter(self.log.read_text().split())
        self.log.write_text("")
        return counted

    def hashes(self) -> dict[str, str]:
        """Every file of the published bundle but the manifest, hashed here and not by the code."""
        return {
            path.relative_to(self.output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }


def in_child(work: Callable[[], object]) -> BaseProcess:
    """Start `work` in a process of its own that can be killed; its error is its exit code 99."""

    def main() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(99)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def exit_code(process: BaseProcess) -> int | None:
    process.join(timeout=60)
    if process.is_alive():
        process.kill()
        raise AssertionError("the child process hangs")
    return process.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
