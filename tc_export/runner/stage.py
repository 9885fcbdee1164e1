# SPDX-License-Identifier: Apache-2.0
"""One step of a build: what it is called, what it depends on, what it writes, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tc_export.bundle import (
    BundlePath,
    Placement,
    StageRecord,
    StageResults,
    place_file,
)
from tc_export.bundle.manifest import digest_of
from tc_export.bundle.placement import OnCopied
from tc_export.digests import Digests

_PATHS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[BundlePath, ...])


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a running stage may use.

    Attributes:
        folder: the bundle under construction; outputs of the stages that ended are there to read.
        digests: hashes of files, each computed once.
        placement: how files from outside come into the bundle.
        results: what the stages that ended before this one found out.
    """

    folder: Path
    digests: Digests
    placement: Placement
    results: StageResults
    on_progress: Callable[[float, float | None], None]

    def path(self, output: str) -> Path:
        """Where to write a new file of the bundle; the folders above it are made."""
        path = self.folder / output
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def place(self, source: Path, output: str, on_copied: OnCopied = lambda size: None) -> None:
        """Take a large file into the bundle in the way that this build was asked for.

        The bytes may then be shared: nobody may open the output for writing.

        Raises:
            UnsupportedEnvironment: it cannot be done in that way.
        """
        place_file(source, self.folder / output, self.placement, on_copied)

    def advance(self, done: float, total: float | None = None) -> None:
        """Say how far the stage is, in any unit; with a total, time left can be shown."""
        self.on_progress(done, total)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of a build that is run once for one set of inputs.

    Attributes:
        name: unique in its build.
        description: one phrase, shown while the stage runs.
        key: everything that the result depends on, as JSON values: digests, settings, versions.
            What the stage reads from the stages that it `needs` is added by itself.
        outputs: the files and folders that it writes, relative to the bundle. A stage writes new
            files only, and never into the outputs of another.
        run: writes them, and returns what it found out, if anything.
        needs: names of earlier stages whose results it reads.
        after: names of earlier stages whose files it reads too, but whose bytes its key, or that of
            a stage that it needs, tells already: so it does not run again where they do.
        in_subprocess: True where the work is done in processes of its own, so that the stage may
            run beside others.
    """

    name: str
    description: str
    key: Mapping[str, Any]
    outputs: tuple[str, ...]
    run: Callable[[StageContext], StageResults | None]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    in_subprocess: bool = False

    def __post_init__(self) -> None:
        _PATHS.validate_python(self.outputs)

    def effective_key(self, ended: Mapping[str, StageRecord]) -> str:
        """Hash of the key, of what the stage writes, and of the stages that it needs.

        Those count with their keys and with the bytes that they made: a stage that makes other
        bytes from the same inputs makes all that follows run again.
        """
        return digest_of(
            {
                "stage": self.name,
                "key": dict(self.key),
                "outputs": list(self.outputs),
                "needs": {name: ended[name].fingerprint for name in self.needs},
            }
        )
