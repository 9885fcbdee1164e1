# SPDX-License-Identifier: Apache-2.0
"""The exception tree and its exit codes.

    TcExportError               5  internal: a bug of ours
    ├── CheckFailed             1  a check ran and did not pass (parity, verification)
    ├── UsageError              2  bad usage or configuration
    ├── InputError              3  bad input
    │   ├── CheckpointError        not a checkpoint, damaged, or of another shape
    │   ├── VideoError             no video, damaged, or too long
    │   └── BundleError            not a bundle, damaged, or of another version
    └── UnsupportedEnvironment        4  this machine or the target cannot do it

Exit code 0 is success; 130 is an interrupt by the user, 143 an end by SIGTERM (the shell's
conventions).
"""

from __future__ import annotations


class TcExportError(Exception):
    """Base of every error that we raise on purpose.

    The message says what was found and what was expected. `hint` says what to do next, and is
    printed on a line of its own.
    """

    exit_code = 5

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckFailed(TcExportError):
    """A check ran to its end and did not pass."""

    exit_code = 1


class UsageError(TcExportError):
    """The command line or a configuration is wrong."""

    exit_code = 2


class InputError(TcExportError):
    """A file that was given cannot be used."""

    exit_code = 3


class CheckpointError(InputError):
    """The checkpoint is missing, damaged, or does not have the expected tensors."""


class VideoError(InputError):
    """The video is missing, damaged, or does not fit the profile."""


class BundleError(InputError):
    """The bundle is missing, damaged, or was made by another version."""


class UnsupportedEnvironment(TcExportError):
    """This machine, or the target, lacks what was asked for."""

    exit_code = 4
