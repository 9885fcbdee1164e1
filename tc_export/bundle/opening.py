# SPDX-License-Identifier: Apache-2.0
"""Before a bundle is used: is every file what the manifest says? A matter of milliseconds.

`verify` reads every byte. Whoever opens a bundle to answer, or to judge it, cannot wait for that:
here files of up to 64 MiB are hashed, and a larger one is believed as long as its stamp is that of
the last time its bytes were read (`tc_export.digests`). So a large file whose bytes were changed
and whose modification time was then set back is found by `verify` alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tc_export.bundle.files import is_regular_file
from tc_export.bundle.manifest import MANIFEST, Manifest, read_manifest
from tc_export.bundle.verify import Damage, Problem, compare
from tc_export.checkpoint.hf_config import CONFIG
from tc_export.checkpoint.shards import read_json_object
from tc_export.digests import Digests, recall, remember
from tc_export.errors import BundleError, CheckpointError

OnRead = Callable[[int, int], None]
"""Gets how many bytes are done, and how many there are."""

_SETTINGS = (".json", ".jinja")
"""Settings are looked for by name: one that was added would count."""


def open_bundle(bundle: Path, on_read: OnRead = lambda done, total: None) -> Manifest:
    """Read a bundle's manifest, and see that its files are those that it lists.

    Raises:
        BundleError: not a bundle, of another version, or a file is missing or is another one.
    """
    manifest = read_manifest(bundle)
    problems = find_damage(bundle, manifest, on_read)
    if problems:
        raise BundleError(
            f"the bundle {bundle} is damaged:\n" + "\n".join(f"  {each}" for each in problems),
            hint=_what_to_do(bundle, problems),
        )
    return manifest


def find_damage(
    bundle: Path, manifest: Manifest, on_read: OnRead = lambda done, total: None
) -> list[Problem]:
    """Compare a bundle's files with its manifest, as `open_bundle` does.

    Raises:
        BundleError: a path leaves the bundle.
    """
    digests = Digests(earlier=recall().files)
    problems = compare(bundle, manifest.files, digests, on_read)
    remember(digests.known)
    return problems + list(_added_settings(bundle, manifest))


def _added_settings(bundle: Path, manifest: Manifest) -> Iterator[Problem]:
    for path in sorted(bundle.iterdir()):
        listed = path.name in manifest.files or path.name == MANIFEST
        if path.suffix in _SETTINGS and not listed:
            yield Problem(path.name, Damage.ADDED, "answering would read it")


def _what_to_do(bundle: Path, problems: Sequence[Problem]) -> str:
    for problem in problems:
        source = _shared_with(bundle, problem.path)
        if source is not None:
            return (
                f"{problem.path} and {source} are one file (a hard link): the checkpoint was "
                "overwritten. Build the bundle again; with --weights copy it keeps weights of its "
                "own"
            )
    return (
        "build the bundle again, or get it again from where it was built; tc-export verify "
        f"{bundle} reads every file"
    )


def _shared_with(bundle: Path, path: str) -> Path | None:
    """The checkpoint's file that is the same file as the bundle's, where there is one."""
    with contextlib.suppress(OSError, CheckpointError, KeyError, TypeError):
        status = (bundle / path).lstat()
        if status.st_nlink > 1 and is_regular_file(bundle / CONFIG):
            checkpoint = Path(read_json_object(bundle / CONFIG)["builder_config"]["checkpoint"])
            for file in sorted(checkpoint.iterdir()):
                if os.path.samestat(file.stat(), status):
                    return file
    return None
