# SPDX-License-Identifier: Apache-2.0
"""`report.json` and `report.html`: what was found, of what, made by what, and how to repeat it.

docs/parity.md says what each key of `report.json` is.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tc_export.bundle import Profile, read_manifest
from tc_export.errors import UsageError
from tc_export.parity.report.page import render

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
SCHEMA_VERSION = 2
"""Of `report.json`: raised where a key changes its meaning or goes."""

PACKAGES = ("tc-export", "torch", "onnx", "onnxruntime", "polygraphy", "transformers", "numpy")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What was judged; not for which target, since targets share graphs and reports of them.

    Attributes:
        checkpoint_digest: of the checkpoint.
        profile: the largest input.
        graphs: SHA-256 of each graph, by its path in the bundle.
        command: that repeats the comparison, word by word.
    """

    checkpoint_digest: str
    profile: Profile
    graphs: Mapping[str, str]
    command: Sequence[str]


def origin_of(bundle: Path, command: Sequence[str]) -> Origin:
    """What a published bundle says of itself.

    Raises:
        BundleError: it cannot be used.
    """
    manifest = read_manifest(bundle)
    graphs = {path: x.sha256 for path, x in manifest.files.items() if path.endswith(".onnx")}
    return Origin(
        checkpoint_digest=manifest.checkpoint_digest,
        profile=manifest.profile,
        graphs=dict(sorted(graphs.items())),
        command=command,
    )


def make_report_folder(folder: Path, bundle: Path) -> None:
    """Make the folder that a report goes to, which is not in the bundle: that lists all its files.

    Raises:
        UsageError: it is in the bundle, or cannot be made or written to.
    """
    if folder.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"{folder} is in the bundle {bundle}, whose manifest lists every file",
            hint="name a folder outside of it",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="name another place: --report DIR",
        ) from error


def report_document(found: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """All of `report.json`: what was found, and of what."""
    return {
        "schema_version": SCHEMA_VERSION,
        **found,
        "bundle": {
            "checkpoint": origin.checkpoint_digest,
            "graphs": dict(origin.graphs),
            **origin.profile.model_dump(),
        },
        "versions": {"Python": platform.python_version(), **_versions()},
        "repeat": shlex.join(origin.command),
    }


def write_report(
    folder: Path, found: Mapping[str, Any], failures: Sequence[str], origin: Origin
) -> None:
    """Write both files into `folder`.

    Args:
        folder: is there.
        found: a result as JSON values.
        failures: a line for each comparison that failed.
        origin: what was judged.
    """
    document = report_document(found, origin)
    text = json.dumps(document, indent=2, allow_nan=False)
    (folder / REPORT_JSON).write_text(f"{text}\n", encoding="utf-8")
    (folder / REPORT_HTML).write_text(render(document, failures), encoding="utf-8")


def remove_report(folder: Path) -> None:
    """Remove both files, and `folder` where nothing else is in it. Where there is none, nothing."""
    if not folder.is_dir():
        return
    for name in (REPORT_JSON, REPORT_HTML):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # on a device, most of them
    return found
