# SPDX-License-Identifier: Apache-2.0
"""What counts: a flag, else the file, else what is found or the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tc_export.cli.settings.choose import choose_settings
from tc_export.cli.settings.file import FILE_NAME
from tc_export.config import AttentionMask, ModelSettings, TemporalConfig
from tc_export.errors import CheckpointError, UsageError
from tests.checkpoint.families import save_small

NO_FLAGS: dict[str, Any] = {"checkpoint": None, "target": None}


def test_a_flag_wins_over_the_file(working_folder: Path) -> None:
    (working_folder / FILE_NAME).write_text(
        'checkpoint = "a"\ntarget = "orin"\n[profile]\nmax_frames = 8\n[temporal]\ngamma = 0.5\n'
    )
    flags = {"checkpoint": Path("b"), "target": ["cpu", "thor"], "temporal.mask": None}
    chosen = choose_settings(flags, None)
    assert chosen.checkpoint == Path("b")
    assert chosen.values.target == ("cpu", "thor")
    assert chosen.values.profile.max_frames == 8
    assert {key: chosen.source(key) for key in ("target", "profile.max_frames", "release")} == {
        "target": "flag",
        "profile.max_frames": FILE_NAME,
        "release": "default",
    }


def test_the_model_is_asked_for_what_was_said_and_no_more(working_folder: Path) -> None:
    (working_folder / FILE_NAME).write_text("[temporal]\ngamma = 1.0\n")
    flags = {"checkpoint": Path("x"), "temporal.mask": AttentionMask.CAUSAL}
    asked = choose_settings(flags, None).model
    assert asked == ModelSettings(temporal=TemporalConfig(mask=AttentionMask.CAUSAL))
    assert asked.temporal.model_fields_set == {"gamma", "mask"}
    assert asked.pooling.model_fields_set == set()
    assert asked.vision.model_fields_set == set()


def test_a_file_is_named(working_folder: Path, tmp_path: Path) -> None:
    (working_folder / FILE_NAME).write_text('checkpoint = "a"\n')
    (tmp_path / "own.toml").write_text('checkpoint = "b"\n')
    chosen = choose_settings(NO_FLAGS, tmp_path / "own.toml")
    assert chosen.checkpoint == tmp_path / "b"
    assert chosen.source("checkpoint") == str(tmp_path / "own.toml")
    with pytest.raises(UsageError, match=r"none\.toml cannot be read"):
        choose_settings(NO_FLAGS, Path("none.toml"))


def test_the_output_by_default(
    working_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the working folder, or below that of the file: one place from wherever it is run."""
    flags = {"checkpoint": tmp_path / "llava"}
    chosen = choose_settings(flags, None)
    assert chosen.place is not None
    assert chosen.place("orin") == Path("engines/out/llava-orin")
    (working_folder / FILE_NAME).touch()
    (working_folder / "inner").mkdir()
    monkeypatch.chdir(working_folder / "inner")
    chosen = choose_settings(flags, None)
    assert chosen.place is not None
    assert chosen.place("orin") == working_folder / "engines" / "out" / "llava-orin"
    assert choose_settings({**flags, "output": Path("o")}, None).place is None


def test_the_name_of_a_checkpoint_that_is_the_working_folder(working_folder: Path) -> None:
    chosen = choose_settings({"checkpoint": Path()}, None)
    assert chosen.place is not None
    assert chosen.place("cpu").name == f"{working_folder.name}-cpu"


def test_a_checkpoint_is_found(working_folder: Path) -> None:
    save_small(working_folder / "checkpoints" / "small")
    chosen = choose_settings(NO_FLAGS, None)
    assert chosen.checkpoint == Path("checkpoints/small")
    assert chosen.source("checkpoint") == "found here"
    assert choose_settings({"checkpoint": Path("x")}, None).checkpoint == Path("x")


def test_no_checkpoint_and_several(working_folder: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint is given, and none is found") as caught:
        choose_settings(NO_FLAGS, None)
    for way in ("--checkpoint DIR", "tc-export init", FILE_NAME):
        assert way in str(caught.value.hint)
    for name in ("a", "b"):
        save_small(working_folder / name)
    with pytest.raises(UsageError, match="several checkpoints here: a, b") as caught:
        choose_settings(NO_FLAGS, None)
    assert "--checkpoint a" in str(caught.value.hint)


def test_a_wrong_flag_is_of_the_command_line(working_folder: Path) -> None:
    (working_folder / FILE_NAME).write_text("[temporal]\ngamma = 0.5\n")
    with pytest.raises(UsageError, match=r"the command line .*\n.*temporal\.gamma"):
        choose_settings({"temporal.gamma": float("inf")}, None)


def test_an_error_names_the_file_that_takes_part(working_folder: Path) -> None:
    def hint(error: Exception, flags: dict[str, Any]) -> str | None:
        chosen = choose_settings({"checkpoint": Path("x"), **flags}, None)
        with pytest.raises(type(error)) as caught, chosen.named_in_errors():
            raise error
        return getattr(caught.value, "hint", None)

    file = working_folder / FILE_NAME
    assert hint(UsageError("odd", hint="do so"), {}) == "do so"
    file.write_text('release = "10.3"\n')
    assert hint(UsageError("odd", hint="do so"), {}) == f"do so\n  {FILE_NAME} states release"
    assert hint(UsageError("odd"), {}) == f"{FILE_NAME} states release"
    assert hint(CheckpointError("odd"), {}) is None
    assert hint(UsageError("odd", hint="do so"), {"release": "9"}) == "do so"
