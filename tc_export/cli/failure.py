# SPDX-License-Identifier: Apache-2.0
"""Every way that a command can fail, as one message, one hint and one exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from typing import Self

from rich.console import Console
from rich.text import Text

from tc_export.cli.terminal import print_json
from tc_export.errors import CheckFailed, InputError, TcExportError

USAGE = 2
INTERRUPTED = 130  # what a shell says of a program that SIGINT has ended

_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)
_SHOWN_CHARACTERS = 100


class ReportedFailure(CheckFailed):
    """A check did not pass, and what it found has been printed already, as JSON or as a table."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a user is told. `type` is the class in `tc_export.errors`, or what stands for one."""

    type: str
    message: str
    hint: str | None
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Describe an error: ours, one of the command line's parser or of a name, or a bug."""
        error = _about_a_name(error) or error
        if isinstance(error, TcExportError):
            return cls(
                type=type(error).__name__,
                message=str(error),
                hint=error.hint,
                exit_code=error.exit_code,
            )
        if is_of_parser(error):
            return cls(
                type="UsageError",
                message=_parser_message(error),
                hint=_help(error),
                exit_code=USAGE,
            )
        return cls(
            type="InternalError",
            message=f"{type(error).__name__}: {error}",
            hint="run it again with --debug, and report what it prints",
            exit_code=TcExportError.exit_code,
        )

    def print(self, console: Console) -> None:
        """Print the message, and the hint on a line of its own."""
        kind = "internal error:" if self.type == "InternalError" else "error:"
        console.print(Text.assemble((kind, "red"), " ", self.message), soft_wrap=True)
        if self.hint:
            console.print(Text(f"  {self.hint}", style="dim"), soft_wrap=True)

    def print_json(self) -> None:
        """Print the document that stands for the result that there is not."""
        print_json({"error": asdict(self)})


def _about_a_name(error: Exception) -> InputError | None:
    """What to say of a name that no file can have, wherever it was first looked at."""
    if isinstance(error, OSError) and error.errno in _NO_NAME:
        name = os.fsdecode(error.filename or "a file")
        if len(name) > _SHOWN_CHARACTERS:
            name = f"{name[:_SHOWN_CHARACTERS]}…"
        hint = "a name has at most 255 bytes, and a path 4095"
        return InputError(
            f"{name}: {error.strerror}", hint=hint if error.errno == errno.ENAMETOOLONG else None
        )
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return InputError("the name of a file holds a NUL character, which none can have")
    return None


def is_of_parser(error: Exception) -> bool:
    """True for what Typer's parser raises; its class has another home in each version of Typer."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _parser_message(error: Exception) -> str:
    message = str(error.format_message())  # type: ignore[attr-defined]
    return message[:1].lower() + message[1:].rstrip(".")


def _help(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'tc-export'} --help"
