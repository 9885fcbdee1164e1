# SPDX-License-Identifier: Apache-2.0
"""The folder beside a bundle in which it is built: lock, state, resume and atomic publishing.

    .NAME.building/
      lock         held by the build's process, and says who it is; a dead process holds nothing
      state.json   which stages have ended, and the hashes that were computed
      bundle/      the bundle to be
      previous     the bundle that is being replaced, only where two folders cannot be swapped
    NAME/          the published bundle

A kill at any instant leaves the published bundle whole (old or new), and the next build goes on
from what the state says. Only what the state says is believed, and only as far as the hashes hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field, ValidationError

from tc_export.bundle.files import (
    exchange,
    flush,
    is_regular_file,
    remove,
    walk_files,
    walk_outputs,
    write_atomically,
)
from tc_export.bundle.lock import LOCK, locked
from tc_export.bundle.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    Sha256,
    StageRecord,
    read_manifest,
    write_manifest,
)
from tc_export.bundle.placement import Placement, link_or_copy, place_file
from tc_export.config import Config
from tc_export.digests import Digests, recall, remember
from tc_export.errors import BundleError, TcExportError, UnsupportedEnvironment, UsageError

_STATE, _BUNDLE, _PREVIOUS = "state.json", "bundle", "previous"
_OURS = {_STATE, f"{_STATE}.tmp", _BUNDLE, _PREVIOUS}

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class _State(Config):
    version: Literal[3] = 3
    placement: Placement = Placement.AUTO
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    digests: dict[str, Sha256] = Field(default_factory=dict)


class Staging:
    """A build in progress. Made by `open_staging`, which holds the lock.

    Attributes:
        output: where the bundle will be published.
        bundle: the folder that becomes it.
        digests: hashes of files, remembered over a kill; those of large ones also after the build.
        placement: how files from outside come into the bundle.
        records: the stages that have ended, in this build or in a killed one.
        published: the manifest of the bundle that is at `output` now.
        siblings: the manifests of the other bundles in the same folder, by their places.
    """

    def __init__(self, output: Path, folder: Path, placement: Placement) -> None:
        self.output = output
        self.placement = placement
        self.bundle = folder / _BUNDLE
        self._state_path = folder / _STATE
        self._previous = folder / _PREVIOUS
        state = self._read_state()
        self.digests = Digests(state.digests, recall().files)
        self.records = dict(state.stages)
        self.published: Manifest | None = None
        self.siblings: dict[Path, Manifest] = {}

    def _read_state(self) -> _State:
        try:
            state = _State.model_validate_json(self._state_path.read_bytes(), strict=True)
        except (FileNotFoundError, ValidationError):
            return _State()  # nothing, or of another version: nothing that could be resumed
        # What was staged may have names elsewhere, and this build may want none that has.
        return state if state.placement is self.placement else _State(digests=state.digests)

    def prepare(self) -> None:
        """Look at what is published, and make room for what will be.

        Raises:
            UsageError: something is at `output` that a build may not replace.
        """
        self.published = _replaceable(self.output)
        self.siblings = _bundles_beside(self.output)
        self.bundle.mkdir(exist_ok=True)

    def prune(self, stages: Collection[str], outputs: Collection[str]) -> None:
        """Forget and remove what is not of these stages, such as a killed publication's rest."""
        self.records = {name: record for name, record in self.records.items() if name in stages}
        for path in self.unclaimed(outputs):
            remove(self.bundle / path)

    def unclaimed(self, outputs: Collection[str]) -> list[str]:
        """The staged files that are no output of any stage."""
        claimed = set(walk_outputs(self.bundle, outputs))
        return [path for path in walk_files(self.bundle) if path not in claimed]

    def hash_outputs(self, outputs: Collection[str]) -> dict[str, FileRecord]:
        """Hash a stage's outputs, once they are safe on the disk.

        Raises:
            TcExportError: an output is missing, or is something else than a plain file.
        """
        missing = [output for output in outputs if not os.path.lexists(self.bundle / output)]
        paths = list(walk_outputs(self.bundle, outputs))
        odd = [path for path in paths if not is_regular_file(self.bundle / path)]
        if missing or odd:
            raise TcExportError(
                f"a stage ended without its outputs: missing {missing}, not plain files {odd}"
            )
        files = {}
        for path in paths:
            flush(self.bundle / path)
            files[path] = self._record(self.bundle / path)
        return files

    def _record(self, path: Path) -> FileRecord:
        return FileRecord(sha256=self.digests.sha256(path), size_bytes=path.stat().st_size)

    def reuse(self, name: str, key: str, outputs: Collection[str]) -> StageRecord | None:
        """The record of a stage that need not run again, its outputs brought into the staging.

        They are those of the killed build, of the published bundle, or of a bundle beside it: what
        two targets have in common is made once. None where none of these has them whole.
        """
        staged = self.records.get(name)
        if staged and staged.key == key and self._holds(self.bundle, outputs, staged):
            return staged
        self.discard(name, outputs)
        published = {self.output: self.published} if self.published else {}
        for place, manifest in (published | self.siblings).items():
            record = manifest.stages.get(name)
            if record and record.key == key:
                if self._take(place, manifest, outputs, record):
                    return record
                self.discard(name, outputs)
        return None

    def _take(
        self, place: Path, manifest: Manifest, outputs: Collection[str], record: StageRecord
    ) -> bool:
        """Bring a stage's outputs here from another bundle; False where it has them not whole.

        Nothing keeps another build from replacing that bundle meanwhile: what counts is what came.
        """
        try:
            if not self._holds(place, outputs, record):
                return False
            for path in record.files:
                self._bring(place, manifest, path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        return self._holds(self.bundle, outputs, record)

    def _bring(self, place: Path, manifest: Manifest, path: str) -> None:
        """Bring one file here, so that both bundles are as they were asked for."""
        source, destination = place / path, self.bundle / path
        theirs, ours = manifest.weights_asked, self.placement
        if place == self.output and theirs is ours:
            link_or_copy(source, destination)  # the bundle that this one replaces: one name will go
        else:
            must_keep_apart = theirs.keeps_apart and not ours.keeps_apart
            place_file(source, destination, theirs if must_keep_apart else ours)

    def _holds(self, folder: Path, outputs: Collection[str], record: StageRecord) -> bool:
        """True when the outputs in `folder` are exactly those that were recorded."""
        return set(walk_outputs(folder, outputs)) == set(record.files) and all(
            is_regular_file(folder / path)
            and (folder / path).stat().st_size == file.size_bytes
            and self.digests.sha256(folder / path) == file.sha256
            for path, file in record.files.items()
        )

    def discard(self, name: str, outputs: Collection[str]) -> None:
        """Remove a stage's outputs, done or half done, after no state says that they are there."""
        if self.records.pop(name, None):
            self._save()
        for output in outputs:
            remove(self.bundle / output)

    def keep(self, name: str, record: StageRecord) -> None:
        """Write down that a stage has ended."""
        if self.records.get(name) != record:
            self.records[name] = record
            self._save()

    def _save(self) -> None:
        state = _State(placement=self.placement, stages=self.records, digests=self.digests.known)
        write_atomically(self._state_path, state.model_dump_json(indent=2) + "\n")

    def publish(self, manifest: Manifest) -> None:
        """Put the finished bundle at `output` in one step, unless it is there already.

        Raises:
            TcExportError: a stage changed the output of an earlier one.
            UsageError: something else has come to `output` in the meantime.
        """
        for name, record in manifest.stages.items():
            if not self._holds(self.bundle, record.files, record):
                raise TcExportError(f"the outputs of stage {name!r} changed after it had ended")
        is_new = manifest != self.published or not all(
            self._holds(self.output, record.files, record) for record in manifest.stages.values()
        )
        if is_new:
            write_manifest(self.bundle, manifest)
            _replaceable(self.output)
            self._swap()
            flush(self.output.parent)
            self.published = manifest
        remember(self.digests.known)
        self.records = {}  # from here on there is nothing to resume

    def _swap(self) -> None:
        if not self.output.exists():
            self.bundle.rename(self.output)
        elif not exchange(self.bundle, self.output):
            self.output.rename(self._previous)
            try:
                self.bundle.rename(self.output)
            except BaseException:
                self._previous.rename(self.output)
                raise


@contextmanager
def open_staging(output: Path, placement: Placement = Placement.AUTO) -> Iterator[Staging]:
    """Lock `output` for one build, and resume what a killed build left.

    `placement` is how files from outside come into the bundle.

    When the block ends early, the stages that have ended are kept for the next build of the same
    output; nothing is left behind where none has.

    Raises:
        UsageError: `output` cannot be, or is something that a build may not replace.
        UnsupportedEnvironment: another build holds the lock, the disk is full or not writable.
        KeyboardInterrupt: with a message that says what is kept.
    """
    output = _checked(output)
    folder = output.with_name(f".{output.name}.building")
    staging: Staging | None = None
    try:
        with locked(folder, beside=_OURS):
            _recover(folder / _PREVIOUS, output)
            staging = Staging(output, folder, placement)
            try:
                staging.prepare()
                yield staging
            finally:
                if not staging.records:
                    _clear(folder)
    except OSError as error:
        _raise_explained(error, output, folder)
    except KeyboardInterrupt:
        kept = len(staging.records) if staging else 0
        raise KeyboardInterrupt(
            f"interrupted; {kept} finished stage{'' if kept == 1 else 's'} kept, the same command "
            "resumes from there"
            if kept
            else "interrupted before any stage had ended; nothing is left behind"
        ) from None


def _checked(output: Path) -> Path:
    """The real path of `output`, which may be a link to a bundle."""
    output = output.expanduser().resolve()
    if not output.name:
        raise UsageError(f"{output} cannot be a bundle", hint="name a folder to build in")
    if not output.parent.is_dir():
        raise UsageError(
            f"{output} cannot be made: {output.parent} is not a folder",
            hint=f"make it first: mkdir -p {output.parent}",
        )
    return output


def _bundles_beside(output: Path) -> dict[Path, Manifest]:
    """The whole bundles in the folder of `output`, and nothing that only looks like one."""
    found = {}
    for path in sorted(output.parent.iterdir()):
        if path != output and is_regular_file(path / MANIFEST):
            with contextlib.suppress(BundleError):
                found[path] = read_manifest(path)
    return found


def _replaceable(output: Path) -> Manifest | None:
    """The manifest of what is at `output`, None for nothing.

    Raises:
        UsageError: what is there is not a bundle, or is one with files that are not its own.
    """
    hint = "name another output folder, or move this away first"
    if not os.path.lexists(output):
        return None
    if output.is_dir() and not any(output.iterdir()):
        return None
    try:
        manifest = read_manifest(output)
    except BundleError as error:
        raise UsageError(f"a build would replace {output}, but {error}", hint=hint) from error
    added = sorted(set(walk_files(output)) - set(manifest.files) - {MANIFEST})
    if added:
        some = ", ".join(added[:5]) + (", …" if len(added) > 5 else "")
        raise UsageError(
            f"a build would replace {output} and delete {len(added)} file(s) in it that no build "
            f"wrote: {some}",
            hint=hint,
        )
    return manifest


def _recover(previous: Path, output: Path) -> None:
    """Mend what a build left that was killed between the two renames of `Staging._swap`."""
    if os.path.lexists(previous):
        if os.path.lexists(output):
            remove(previous)
        else:
            previous.rename(output)


def _clear(folder: Path) -> None:
    """Remove the staging folder, the lock last, so that nobody takes a half-removed one."""
    for name in (_STATE, _BUNDLE, _PREVIOUS, LOCK):
        remove(folder / name)
    with contextlib.suppress(OSError):  # the next build may have come in between
        folder.rmdir()


def _raise_explained(error: OSError, output: Path, folder: Path) -> NoReturn:
    """Say what a system error means for a build; one that is not about its folders stays."""
    parent = output.parent
    where = Path(os.fsdecode(error.filename or folder))
    if error.errno in _DISK_FULL:
        free_gib = shutil.disk_usage(parent).free / 2**30
        raise UnsupportedEnvironment(
            f"writing {where} failed: {error.strerror} ({free_gib:.2f} GiB free in {parent})",
            hint="make room and run the same command again: finished stages are kept",
        ) from error
    if error.errno in _NOT_WRITABLE and any(where.is_relative_to(x) for x in (folder, output)):
        raise UnsupportedEnvironment(
            f"a build of {output} writes in {parent}, but {where} cannot be used: {error.strerror}",
            hint=f"change the permissions of {parent}, or name another output folder",
        ) from error
    raise error
