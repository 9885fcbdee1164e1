# SPDX-License-Identifier: Apache-2.0
"""Runs an ordered list of stages, skips what is done, and publishes the bundle at the end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from tc_export.bundle import BundleSpec, Manifest, StageRecord, StageResults, Staging
from tc_export.errors import TcExportError
from tc_export.runner.reporter import Reporter
from tc_export.runner.stage import Stage, StageContext

_Handler = Callable[[int, FrameType | None], object]  # of a signal


def run_stages(
    staging: Staging,
    stages: Sequence[Stage],
    spec: BundleSpec,
    reporter: Reporter,
    *,
    jobs: int = 1,
) -> Manifest:
    """Bring every stage's outputs into the staging folder, then publish it as the bundle.

    A stage is skipped when its effective key and the hashes of its outputs are those of the killed
    build that this one resumes, of the bundle that it replaces, or of a bundle beside it.

    `jobs` is how many stages may run at once: one in this thread, and as many of those that run in
    processes of their own as that leaves. They run in order where it is 1.
    """
    _check_order(stages)
    outputs = [output for stage in stages for output in stage.outputs]
    staging.prune([stage.name for stage in stages], outputs)
    reporter.listed(stages)
    build = _Build(staging, stages, reporter, jobs)
    with _interrupts_remembered() as was_interrupted:
        ended = build.run(was_interrupted)
    manifest = Manifest.assemble(spec, {stage.name: ended[stage.name] for stage in stages})
    staging.publish(manifest)
    return manifest


def is_up_to_date(published: Manifest, stages: Sequence[Stage]) -> bool:
    """True where each of these stages ended in the published bundle just as it would now.

    The bundle may have more stages than these: those that its device has added.
    """
    ended: dict[str, StageRecord] = {}
    for stage in stages:
        record = published.stages.get(stage.name)
        if record is None or record.key != stage.effective_key(ended):
            return False
        ended[stage.name] = record
    return True


class _Cancelled(BaseException):
    """Raised in a stage that runs beside one that failed."""


class _Build:
    """Runs stages: this thread does all the book-keeping, others only what a stage itself does."""

    def __init__(
        self, staging: Staging, stages: Sequence[Stage], reporter: Reporter, jobs: int
    ) -> None:
        self._staging = staging
        self._stages = stages
        self._reporter = reporter
        self._jobs = jobs
        self._ended: dict[str, StageRecord] = {}
        self._running: dict[Future[_Run], tuple[Stage, str]] = {}
        self._cancelled = threading.Event()

    def run(self, was_interrupted: Callable[[], bool]) -> dict[str, StageRecord]:
        """Run all stages; when one fails, stop the others and keep what had ended."""
        waiting = list(self._stages)
        with ThreadPoolExecutor(max(1, self._jobs - 1)) as pool:
            try:
                while waiting or self._running:
                    self._start_in_subprocess(waiting, pool)
                    here = next((stage for stage in waiting if self._is_ready(stage)), None)
                    if here is not None:
                        waiting.remove(here)
                        self._run_here(here)
                    elif self._running:
                        wait(self._running, return_when=FIRST_COMPLETED)
                    self._collect()
                    if was_interrupted():
                        raise KeyboardInterrupt
            except BaseException as error:
                self._cancel()
                if was_interrupted():
                    raise KeyboardInterrupt from error
                raise
        return self._ended

    def _is_ready(self, stage: Stage) -> bool:
        return all(name in self._ended for name in (*stage.needs, *stage.after))

    def _start_in_subprocess(self, waiting: list[Stage], pool: ThreadPoolExecutor) -> None:
        """Start what may run beside this thread, as far as there is room."""
        ready = [stage for stage in waiting if stage.in_subprocess and self._is_ready(stage)]
        for stage in ready:
            if len(self._running) < self._jobs - 1:
                waiting.remove(stage)
                key = self._begin(stage)
                if key is not None:
                    future = pool.submit(_execute, stage, self._context(stage))
                    self._running[future] = (stage, key)

    def _run_here(self, stage: Stage) -> None:
        key = self._begin(stage)
        if key is None:
            return
        try:
            self._end(stage, key, _execute(stage, self._context(stage)))
        except BaseException as error:
            self._fail(stage, error)

    def _collect(self) -> None:
        """Take in what has ended beside this thread."""
        for future in [future for future in self._running if future.done()]:
            stage, key = self._running.pop(future)
            try:
                self._end(stage, key, future.result())
            except BaseException as error:
                self._fail(stage, error)

    def _cancel(self) -> None:
        """Stop what still runs: a stage ends at its next report of progress."""
        self._cancelled.set()
        wait(self._running)
        for future, (stage, key) in list(self._running.items()):
            del self._running[future]
            try:
                self._end(stage, key, future.result())
            except BaseException:  # what brought the build down is told, and not what came of it
                self._staging.discard(stage.name, stage.outputs)

    def _begin(self, stage: Stage) -> str | None:
        """The stage's key, or None where it need not run."""
        key = stage.effective_key(self._ended)
        record = self._staging.reuse(stage.name, key, stage.outputs)
        if record is None:
            self._reporter.started(stage)
            return key
        self._reporter.skipped(stage)
        self._keep(stage, record)
        return None

    def _context(self, stage: Stage) -> StageContext:
        def progress(done: float, total: float | None) -> None:
            if self._cancelled.is_set():
                raise _Cancelled
            self._reporter.advanced(stage, done, total)

        return StageContext(
            folder=self._staging.bundle,
            digests=self._staging.digests,
            placement=self._staging.placement,
            results=StageResults.merge(record.results for record in self._ended.values()),
            on_progress=progress,
        )

    def _end(self, stage: Stage, key: str, run: _Run) -> None:
        """Check and hash what the stage wrote, and write down that it has ended."""
        start = time.perf_counter()
        if not self._running:  # what runs may have files beside its outputs
            outputs = [output for stage in self._stages for output in stage.outputs]
            undeclared = self._staging.unclaimed(outputs)
            if undeclared:
                raise TcExportError(
                    f"stage {stage.name!r} wrote what it does not name: {undeclared}"
                )
        files = self._staging.hash_outputs(stage.outputs)
        seconds = round(run.seconds + time.perf_counter() - start, 3)
        record = StageRecord(key=key, seconds=seconds, files=files, results=run.results)
        self._reporter.finished(stage, seconds)
        self._keep(stage, record)

    def _keep(self, stage: Stage, record: StageRecord) -> None:
        self._ended[stage.name] = record
        self._staging.keep(stage.name, record)

    def _fail(self, stage: Stage, error: BaseException) -> NoReturn:
        # What it half wrote may be what filled the disk.
        self._staging.discard(stage.name, stage.outputs)
        _raise_disk_full(error)
        raise error


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a stage found out, and how long it took."""

    results: StageResults
    seconds: float


def _execute(stage: Stage, context: StageContext) -> _Run:
    start = time.perf_counter()
    results = stage.run(context) or StageResults()
    return _Run(results=results, seconds=time.perf_counter() - start)


@contextmanager
def _interrupts_remembered() -> Iterator[Callable[[], bool]]:
    """Remember that a build was interrupted: a library may swallow the exception on its way.

    PyTorch's exporter does, and so does Python where something is finalised just then; the
    traceback that it tells of that with is left out. A signal that nobody handles is left alone;
    the command line handles SIGTERM too. Only the main thread may handle signals; elsewhere nothing
    changes.
    """
    interrupted = False

    def remembering(handler: _Handler) -> _Handler:
        def interrupt(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted = True
            handler(number, frame)
            raise KeyboardInterrupt

        return interrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    tell = sys.unraisablehook
    for number, handler in handled.items():
        signal.signal(number, remembering(handler))
    sys.unraisablehook = lambda x: None if issubclass(x.exc_type, KeyboardInterrupt) else tell(x)
    try:
        yield lambda: interrupted
    finally:
        sys.unraisablehook = tell
        for number, handler in handled.items():
            signal.signal(number, handler)


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
        unknown = {*stage.needs, *stage.after} - names
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
