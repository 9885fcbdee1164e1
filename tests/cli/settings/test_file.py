# SPDX-License-Identifier: Apache-2.0
"""`tc-export.toml`: where it is found, what is refused, and the one that `init` writes."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from pathlib import Path

import pytest

from tc_export.cli.settings.file import (
    FILE_NAME,
    find_settings_file,
    new_settings_file,
    read_settings_file,
    write_new_settings_file,
)
from tc_export.cli.settings.schema import FIELDS, Settings, read_settings, stated
from tc_export.errors import UsageError
from tests.repository import DEMO_CHECKPOINT, REPOSITORY


def test_the_nearest_file_is_found(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_settings_file() is None
    inner = working_folder / "a" / "b"
    inner.mkdir(parents=True)
    (working_folder / FILE_NAME).touch()
    assert find_settings_file() == Path(FILE_NAME)
    monkeypatch.chdir(inner)
    assert find_settings_file() == working_folder / FILE_NAME
    (working_folder / "a" / FILE_NAME).touch()
    assert find_settings_file() == working_folder / "a" / FILE_NAME


def test_a_file_that_leads_nowhere_is_not_passed_over(working_folder: Path) -> None:
    (working_folder / FILE_NAME).symlink_to("nowhere")
    assert find_settings_file() == Path(FILE_NAME)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_settings_file(Path(FILE_NAME))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('checkpoint = "models/x"\noutput = "/out"\ntarget = ["orin", "my/a.toml"]\n')
    settings = read_settings_file(file)
    assert settings.checkpoint == str(tmp_path / "models" / "x")
    assert settings.output == "/out"
    assert settings.target == ("orin", str(tmp_path / "my" / "a.toml"))


def test_paths_of_the_working_folder_stay_short(working_folder: Path) -> None:
    (working_folder / FILE_NAME).write_text('checkpoint = "models/x"\ntarget = "a.toml"\n')
    settings = read_settings_file(Path(FILE_NAME))
    assert (settings.checkpoint, settings.target) == ("models/x", ("a.toml",))


CONTENTS = {
    "no TOML": (b"checkpoint = ", "is not TOML: Invalid value"),
    "a key twice": (b'release = "1"\nrelease = "2"\n', "is not TOML"),
    "NUL": (b'checkpoint = "a\0b"\n', "is not TOML"),
    "NUL, escaped": (b'checkpoint = "a\\u0000b"\n', "a NUL character"),
    "not UTF-8": (b'checkpoint = "\xff"\n', "is not TOML"),
    "a number too long": (b"[build]\njobs = " + b"9" * 5000, "is not TOML|a line of"),
    "deep": (b"a = " + b"[" * 900, "nested too deeply|is not TOML"),
    "a long line": (b"# " + b"x" * 1000, "a line of 1002 characters"),
    "large": (b"# x\n" * 300_000, "more than 64 KiB"),
    "a date": (b"checkpoint = 2024-01-01\n", "checkpoint: .*not datetime"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_file_of_settings(tmp_path: Path, name: str) -> None:
    content, message = CONTENTS[name]
    file = tmp_path / FILE_NAME
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_settings_file(file)
    assert str(file) in str(caught.value)


def test_a_key_that_would_take_all_memory(tmp_path: Path) -> None:
    """The parser keeps every beginning of a dotted key: a megabyte of one takes 250 GB."""
    file = tmp_path / FILE_NAME
    file.write_text("a." * 30_000 + "a = 1\n")
    with pytest.raises(UsageError, match="a line of 60005 characters"):
        read_settings_file(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_settings_file(file)
    file.mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_settings_file(file)
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="is not a plain file"):
        read_settings_file(file)
    with pytest.raises(UsageError, match="is not a plain file"):
        read_settings_file(Path("/dev/zero"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is stood in for: the superuser may read everything."""

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    file = tmp_path / FILE_NAME
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        read_settings_file(file)


def test_a_new_file_states_nothing(working_folder: Path) -> None:
    write_new_settings_file(replace=False)
    settings = read_settings_file(Path(FILE_NAME))
    assert settings == Settings()
    assert stated(settings) == {}
    assert [path.name for path in working_folder.iterdir()] == [FILE_NAME]


def test_a_new_file_has_every_key_with_its_default() -> None:
    """Uncommented, the keys state the defaults, or an example where there is no default."""
    text = re.sub(r"^#(\w+ = )", r"\1", new_settings_file(), flags=re.MULTILINE)
    said = stated(read_settings(tomllib.loads(text), where="a new file"))
    assert said.keys() == FIELDS.keys()
    for key, field in FIELDS.items():
        assert said[key] == field.default or field.default is None, key
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_checkouts_own_file_is_for_the_demo_model() -> None:
    settings = read_settings_file(REPOSITORY / FILE_NAME)
    assert settings.checkpoint == str(DEMO_CHECKPOINT)
    assert settings.profile.max_frames == 8
    assert stated(settings).keys() == {"checkpoint", "profile.max_frames"}
