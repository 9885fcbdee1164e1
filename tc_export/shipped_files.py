# SPDX-License-Identifier: Apache-2.0
"""Data that is shipped as TOML files, a file each: found by name, or the user's own by path."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tc_export.errors import InputError, UsageError

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ShippedFiles:
    """The files of one kind.

    Attributes:
        kind: what one is called: `target`.
        folder: its folder's name below engines/.
        own: how messages say that there may be others.
    """

    kind: str
    folder: str
    own: str

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where they may be: installed by a wheel, or in a source checkout."""
        return (
            _PACKAGE / "engines" / self.folder,
            _PACKAGE.parent / "engines" / self.folder,
        )

    def by_name(self) -> dict[str, Path]:
        """All of them.

        Raises:
            UsageError: none are installed.
        """
        for folder in self.folders:
            if folder.is_dir():
                return {path.stem: path for path in sorted(folder.glob("*.toml"))}
        raise UsageError(
            f"no {self.kind}s are installed: looked in {', '.join(map(str, self.folders))}",
            hint="install tc-export again",
        )

    def find(self, name_or_path: str) -> Path:
        """The file of a name, or the path itself.

        Raises:
            UsageError: there is none of that name; names the nearest.
        """
        if is_path(name_or_path):
            return Path(name_or_path)
        shipped = self.by_name()
        if name_or_path not in shipped:
            near = difflib.get_close_matches(name_or_path.lower(), shipped, n=1, cutoff=0.5)
            raise UsageError(
                f"the {self.kind} {name_or_path!r} is unknown; known {self.kind}s: "
                f"{', '.join(shipped)}",
                hint=(f"did you mean {near[0]}? " if near else "") + self.own,
            )
        return shipped[name_or_path]

    def read(self, path: Path, *, hint: str | None = None) -> dict[str, Any]:
        """What a file states.

        Raises:
            UsageError: it is not TOML.
            InputError: it cannot be read; `hint` says what to do.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the {self.kind}'s file {path} cannot be read: {error}", hint=hint
            ) from error
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from error


def is_path(name_or_path: str) -> bool:
    """True for what ends in `.toml` or has a folder in it."""
    path = Path(name_or_path)
    return path.suffix == ".toml" or len(path.parts) > 1
