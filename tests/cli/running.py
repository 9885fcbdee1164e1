# SPDX-License-Identifier: Apache-2.0
"""Running the command line in a test, as a user calls it."""

from __future__ import annotations

import pytest

from tc_export.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed, without the terminal's breaks."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    code = ended.value.code
    assert "Traceback" not in printed.err
    return (0 if code is None else int(code)), printed.out, " ".join(printed.err.split())
