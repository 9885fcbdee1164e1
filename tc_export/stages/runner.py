# SPDX-License-Identifier: Apache-2.0
"""Runs an ordered list of stages, skips what is done, and publishes the bundle at the end."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from tc_export.bundle import Description, Facts, Manifest, StageRecord, Staging
from tc_export.errors import TcExportError
from tc_export.stages.reporter import Reporter
from tc_export.stages.stage import Stage, StageContext


def run_stages(
    staging: Staging, stages: Sequence[Stage], description: Description, reporter: Reporter
) -> Manifest:
    """Bring every stage's outputs into the staging folder, then publish it as the bundle.

    A stage is skipped when its effective key and the hashes of its outputs are those of the killed
    build that this one resumes, or of the bundle that it replaces.
    """
    _check_order(stages)
    outputs = [output for stage in stages for output in stage.outputs]
    staging.prune([stage.name for stage in stages], outputs)
    reporter.planned(stages)
    ended: dict[str, StageRecord] = {}
    with _interrupts_remembered() as was_interrupted:
        for stage in stages:
            ended[stage.name] = _bring_up_to_date(staging, stage, ended, outputs, reporter)
            if was_interrupted():
                raise KeyboardInterrupt
    manifest = Manifest.assemble(description, ended)
    staging.publish(manifest)
    return manifest


def _bring_up_to_date(
    staging: Staging,
    stage: Stage,
    ended: Mapping[str, StageRecord],
    outputs: Sequence[str],
    reporter: Reporter,
) -> StageRecord:
    """Run one stage, or find that it need not be."""
    key = stage.effective_key(ended)
    record = staging.reuse(stage.name, key, stage.outputs)
    if record is not None:
        reporter.skipped(stage)
    else:
        reporter.started(stage)
        record = _run(staging, stage, key, outputs, reporter)
        reporter.finished(stage, record.seconds)
    staging.keep(stage.name, record)
    return record


@contextmanager
def _interrupts_remembered() -> Iterator[Callable[[], bool]]:
    """Remember that the user interrupted: a library may swallow the exception on its way.

    PyTorch's exporter does. Only the main thread may handle signals; elsewhere nothing changes.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _run(
    staging: Staging, stage: Stage, key: str, outputs: Sequence[str], reporter: Reporter
) -> StageRecord:
    start = time.perf_counter()
    context = StageContext(
        folder=staging.bundle,
        digests=staging.digests,
        on_progress=partial(reporter.advanced, stage),
    )
    try:
        facts = stage.run(context) or Facts()
        undeclared = staging.unclaimed(outputs)
        if undeclared:
            raise TcExportError(f"stage {stage.name!r} wrote what it does not name: {undeclared}")
        files = staging.hash_outputs(stage.outputs)
    except BaseException as error:
        # What it half wrote may be what filled the disk.
        staging.discard(stage.name, stage.outputs)
        _raise_disk_full(error)
        raise
    seconds = round(time.perf_counter() - start, 3)
    return StageRecord(key=key, seconds=seconds, files=files, facts=facts)


def _raise_disk_full(error: BaseException) -> None:
    """Give a full disk its errno back: native libraries hand on its text alone."""
    text = os.strerror(errno.ENOSPC)
    if not isinstance(error, OSError | TcExportError) and text in str(error):
        raise OSError(errno.ENOSPC, text) from error


def _check_order(stages: Sequence[Stage]) -> None:
    """Refuse a list of stages that cannot be right: a bug in the pipeline, not of its user."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for stage in stages:
        if stage.name in names:
            raise TcExportError(f"two stages are called {stage.name!r}")
        unknown = set(stage.needs) - names
        if unknown:
            raise TcExportError(
                f"stage {stage.name!r} needs {sorted(unknown)}, none of the stages before it: "
                f"{sorted(names)}"
            )
        names.add(stage.name)
        for output in stage.outputs:
            for other, owner in owners.items():
                if f"{output}/".startswith(f"{other}/") or f"{other}/".startswith(f"{output}/"):
                    raise TcExportError(
                        f"stages {owner!r} and {stage.name!r} both write {other} and {output}"
                    )
            owners[output] = stage.name
