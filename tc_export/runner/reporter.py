# SPDX-License-Identifier: Apache-2.0
"""Who is told how a build goes: nobody, or a person at a terminal (or reading a log)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tc_export.runner.stage import Stage


class Reporter(Protocol):
    """Follows a build. What must be read to list its stages is read first; then they are listed,
    and each is skipped, or started, advanced any number of times and, if all goes well, finished.
    Several may run at once, each in its thread.
    """

    def read(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """So much has been read of the checkpoint, or of what else `what` names."""

    def listed(self, stages: Sequence[Stage]) -> None:
        """All stages of the build, in order."""

    def skipped(self, stage: Stage) -> None:
        """The stage's outputs were there already."""

    def started(self, stage: Stage) -> None:
        """The stage runs now."""

    def advanced(self, stage: Stage, done: float, total: float | None) -> None:
        """The stage is so far, in its own unit; `total` is None where it cannot tell."""

    def finished(self, stage: Stage, seconds: float) -> None:
        """The stage has ended well."""


class SilentReporter:
    """Tells nobody."""

    def read(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Say nothing."""

    def listed(self, stages: Sequence[Stage]) -> None:
        """Say nothing."""

    def skipped(self, stage: Stage) -> None:
        """Say nothing."""

    def started(self, stage: Stage) -> None:
        """Say nothing."""

    def advanced(self, stage: Stage, done: float, total: float | None) -> None:
        """Say nothing."""

    def finished(self, stage: Stage, seconds: float) -> None:
        """Say nothing."""


class RichReporter:
    """Prints a line for each stage, and below them, on a terminal, the one that runs.

    Use it as a context manager: the terminal is given back however the build ends.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def read(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Move a bar that is there until all is read; a log has nothing of it."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(f"read {what}", total=total_bytes)
        self._progress.update(self._tasks[what], completed=done_bytes)
        if done_bytes == total_bytes:
            self._progress.remove_task(self._tasks.pop(what))

    def listed(self, stages: Sequence[Stage]) -> None:
        """Number the steps."""
        self._steps = {
            stage.name: f"[{number}/{len(stages)}] {escape(stage.description)}"
            for number, stage in enumerate(stages, start=1)
        }

    def skipped(self, stage: Stage) -> None:
        """Print that nothing has to be done."""
        self._console.print(f"{self._steps[stage.name]}: [dim]unchanged[/dim]", highlight=False)

    def started(self, stage: Stage) -> None:
        """Show the stage; in a log, print it, since nothing else tells that it has begun."""
        if self._console.is_terminal:
            task = self._progress.add_task(self._steps[stage.name], total=None)
            self._tasks[stage.name] = task
        else:
            self._console.print(f"{self._steps[stage.name]} …", highlight=False)

    def advanced(self, stage: Stage, done: float, total: float | None) -> None:
        """Move the bar."""
        if stage.name in self._tasks:
            self._progress.update(self._tasks[stage.name], completed=done, total=total)

    def finished(self, stage: Stage, seconds: float) -> None:
        """Print the time that it took."""
        if stage.name in self._tasks:
            self._progress.remove_task(self._tasks.pop(stage.name))
        self._console.print(
            f"{self._steps[stage.name]}: [green]done[/green] in {seconds:.1f} s", highlight=False
        )
