# SPDX-License-Identifier: Apache-2.0
"""Errors and results on their way from the worker to who asked for the engine."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tc_export.engine.tensorrt.builder.messages import describe_error, error_from
from tc_export.errors import InputError, TcExportError, UsageError


@pytest.mark.parametrize(
    "error",
    [
        UsageError("wrong", hint="do that"),
        InputError("damaged"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_through_the_pipe(error: TcExportError | OSError) -> None:
    again = error_from(json.loads(json.dumps(describe_error(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    if isinstance(error, TcExportError):
        assert isinstance(again, TcExportError)
        assert again.hint == error.hint
