# SPDX-License-Identifier: Apache-2.0
"""What counts in the end: a flag, else the file, else what is found or the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tc_export.checkpoint.find import find_checkpoints
from tc_export.cli.settings.file import FILE_NAME, find_settings_file, read_settings_file
from tc_export.cli.settings.schema import Settings, from_keys, stated
from tc_export.config import ModelSettings
from tc_export.errors import UsageError

FLAG, FOUND, DEFAULT = "flag", "found here", "default"
OUTPUT_FOLDER = Path("engines", "out")


@dataclass(frozen=True, kw_only=True)
class ChosenSettings:
    """Settings, and where each came from."""

    values: Settings
    sources: Mapping[str, str]
    """By key: a flag, the file's path, or that it was found. A default has none."""
    checkpoint: Path
    file: Path | None
    """The file that was read."""

    def source(self, key: str) -> str:
        """Where a setting came from, in a word."""
        return self.sources.get(key, DEFAULT)

    @property
    def model(self) -> ModelSettings:
        """What was said of the model."""
        said = stated(self.values)
        parts: dict[str, dict[str, Any]] = {part: {} for part in ModelSettings.model_fields}
        for key, value in said.items():
            table, _, name = key.rpartition(".")
            if table in parts:
                parts[table][name] = value
        return ModelSettings.read(parts, where="the settings")

    @property
    def output(self) -> Path:
        """The folder of the bundle; of all bundles where that is a default."""
        if self.values.output is not None:
            return Path(self.values.output)
        return (self.file.parent if self.file else Path()) / OUTPUT_FOLDER

    @property
    def place(self) -> Callable[[str], Path] | None:
        """Where the bundle of a target's name goes by default; None where an output was said."""
        if self.values.output is not None:
            return None
        recipe = self.values.quantize
        quantized = "" if recipe is None else f"-{Path(recipe).stem}"
        return partial(_default_place, self.output, self.checkpoint.resolve().name + quantized)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Say of wrong usage what a file states: the command line does not show that."""
        try:
            yield
        except UsageError as error:
            in_file = [key for key, source in self.sources.items() if source == str(self.file)]
            if not in_file:
                raise
            note = f"{self.file} states {', '.join(in_file)}"
            raise UsageError(
                str(error), hint=f"{error.hint}\n  {note}" if error.hint else note
            ) from error


def _default_place(folder: Path, checkpoint: str, target: str) -> Path:
    return folder / f"{checkpoint}-{target}"


def choose_settings(flags: Mapping[str, Any], config: Path | None) -> ChosenSettings:
    """Put the flags over the file that is named or found; a flag that is None was not given.

    Raises:
        UsageError: the file or a flag is wrong, or there is no checkpoint, or more than one.
    """
    file = config or find_settings_file()
    in_file = {} if file is None else stated(read_settings_file(file))
    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in flags.items()
        if value is not None
    }
    sources = dict.fromkeys(in_file, str(file)) | dict.fromkeys(given, FLAG)
    values = from_keys(in_file | given, where="the command line")
    checkpoint = values.checkpoint
    if checkpoint is None:
        sources["checkpoint"] = FOUND
    return ChosenSettings(
        values=values,
        sources=sources,
        checkpoint=Path(checkpoint) if checkpoint is not None else _the_checkpoint_here(),
        file=file,
    )


def _the_checkpoint_here() -> Path:
    """The checkpoint in the working folder.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = find_checkpoints(Path())
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"there are several checkpoints here: {', '.join(map(str, found))}",
            hint=f"name one: --checkpoint {found[0]}, or `checkpoint` in {FILE_NAME}",
        )
    raise UsageError(
        "no checkpoint is given, and none is found in the working folder or in ./checkpoints",
        hint="--checkpoint DIR names a Hugging Face folder of a LLaVA-family model; "
        f"tc-export init writes a {FILE_NAME} that can state it",
    )
