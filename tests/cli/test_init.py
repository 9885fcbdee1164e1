# SPDX-License-Identifier: Apache-2.0
"""`tc-export init`: a file of settings that is never lost by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tc_export.cli.settings.file import new_settings_file
from tests.cli.running import run

Capture = pytest.CaptureFixture[str]


def test_init_writes_a_file_once(working_folder: Path, capsys: Capture) -> None:
    file = working_folder / "tc-export.toml"
    assert run(capsys, "init") == (0, "settings: tc-export.toml\n", "")
    assert file.read_text() == new_settings_file()
    file.write_text("# mine\n")
    code, out, err = run(capsys, "init")
    assert (code, out) == (2, "")
    assert "is there already --force replaces it" in err
    assert file.read_text() == "# mine\n"
    assert run(capsys, "init", "--force")[0] == 0
    assert file.read_text() == new_settings_file()


def test_init_does_not_follow_what_is_there(working_folder: Path, capsys: Capture) -> None:
    """A link or a FIFO is replaced by force: nobody writes through it, or waits for it."""
    file, theirs = working_folder / "tc-export.toml", working_folder / "theirs"
    theirs.write_text("years of work")
    file.symlink_to(theirs)
    assert run(capsys, "init")[0] == 2
    assert run(capsys, "init", "--force")[0] == 0
    assert theirs.read_text() == "years of work"
    file.unlink()
    os.mkfifo(file)
    assert run(capsys, "init", "--force")[0] == 0
    assert file.read_text() == new_settings_file()


def test_init_where_it_cannot_write(working_folder: Path, capsys: Capture) -> None:
    (working_folder / "tc-export.toml").mkdir()
    code, _, err = run(capsys, "init", "--force")
    assert code == 2
    assert "cannot be written" in err
    assert [path.name for path in working_folder.iterdir()] == ["tc-export.toml"]
