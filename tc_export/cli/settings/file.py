# SPDX-License-Identifier: Apache-2.0
"""`tc-export.toml`: where it is found, how it is read, and what a new one says.

It holds a handful of keys. Its size is bounded because TOML takes memory that grows with the square
of a dotted key's length.
"""

from __future__ import annotations

import json
import os
import stat
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tc_export.bundle.files import write_atomically
from tc_export.cli.settings.schema import FIELDS, Settings, from_keys, read_settings, stated, tables
from tc_export.errors import UsageError
from tc_export.shipped_files import is_path

FILE_NAME = "tc-export.toml"
MOST_BYTES = 64 << 10
MOST_LINE_CHARACTERS = 1000
_NEW_FILE = "tc-export init writes one with every key"

_HEADER = """\
# Settings of tc-export build and tc-export plan, for the commands that are run in this folder and
# below it. A flag wins over what is stated here; relative paths are relative to this file.
# A key that is commented out has its default, which is shown, or an example where there is none.
"""


def find_settings_file() -> Path | None:
    """The nearest file in the working folder or above it; its path is relative in the former."""
    if os.path.lexists(FILE_NAME):
        return Path(FILE_NAME)
    candidates = (folder / FILE_NAME for folder in Path.cwd().parents)
    return next((file for file in candidates if os.path.lexists(file)), None)


def read_settings_file(file: Path) -> Settings:
    """What a file states, with paths that are relative to it made relative to the working folder.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a key or a value that is wrong.
    """
    values = stated(read_settings(_parse(file), where=str(file)))
    for key in values.keys() & {"checkpoint", "output"}:
        values[key] = str(file.parent / values[key])
    if "target" in values:
        values["target"] = tuple(
            str(file.parent / name) if is_path(name) else name for name in values["target"]
        )
    return from_keys(values, where=str(file))


def _parse(file: Path) -> dict[str, Any]:
    try:
        text = _read_bytes(file).decode("utf-8")
        longest = max(map(len, text.splitlines()), default=0)
        if longest > MOST_LINE_CHARACTERS:
            raise UsageError(
                f"{file} has a line of {longest} characters; {MOST_LINE_CHARACTERS} are the most",
                hint=_NEW_FILE,
            )
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=_NEW_FILE) from error
    except RecursionError as error:
        raise UsageError(f"{file} is nested too deeply", hint=_NEW_FILE) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{file} is not TOML: {error}", hint=_NEW_FILE) from error


def _read_bytes(file: Path) -> bytes:
    # Opening a FIFO waits for a writer unless it is told not to.
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise UsageError(f"{file} is not a plain file", hint=_NEW_FILE)
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"{file} has more than {MOST_BYTES >> 10} KiB, expected a file of settings",
            hint=_NEW_FILE,
        )
    return content


def write_new_settings_file(*, replace: bool) -> None:
    """Write a file that states nothing and explains every key into the working folder.

    Raises:
        UsageError: there is one and it is not to be replaced, or it cannot be written.
    """
    if os.path.lexists(FILE_NAME) and not replace:
        raise UsageError(f"{FILE_NAME} is there already", hint="--force replaces it")
    try:
        write_atomically(Path(FILE_NAME), new_settings_file())
    except OSError as error:
        raise UsageError(f"{FILE_NAME} cannot be written: {error.strerror}") from error


def new_settings_file() -> str:
    """The text of a file that states nothing, and explains every key."""
    parts = [_HEADER, *_entries(key for key in FIELDS if "." not in key)]
    for table, kind in tables().items():
        parts.append(f"[{table}]  # {kind.__doc__}\n")
        parts += _entries(f"{table}.{name}" for name in kind.model_fields)
    return "\n".join(parts)


def _entries(keys: Iterator[str]) -> Iterator[str]:
    for key in keys:
        field = FIELDS[key]
        example = field.examples[0] if field.default is None and field.examples else field.default
        comment = textwrap.fill(
            str(field.description), 100, initial_indent="# ", subsequent_indent="# "
        )
        yield f"{comment}\n#{key.rpartition('.')[2]} = {_as_toml(example)}\n"


def _as_toml(value: Any) -> str:
    """A word, a number, a truth, or a list of words of one."""
    return json.dumps(value[0] if isinstance(value, tuple) else value)
