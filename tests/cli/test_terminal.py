# SPDX-License-Identifier: Apache-2.0
"""What others wrote is printed as it is, and never obeyed."""

from __future__ import annotations

import pytest
from rich.table import Table
from rich.text import Text

from tc_export.cli.terminal import Terminal, print_json, say, say_piece, show, spell_controls

HOSTILE = "[red]:cat: \x1b[31m\x9b\u202e\udcff"
SPELLED = "[red]:cat: \\x1b[31m\\x9b\\u202e\\udcff"


def test_controls_are_spelled_and_lines_stay() -> None:
    assert spell_controls(HOSTILE) == SPELLED
    assert spell_controls("bell \x07, return \r") == "bell \\x07, return \\r"
    plain = "two\n\tlines, ünïcödé, 日本語, [brackets] \\ and 🐈"
    assert spell_controls(plain) == plain


@pytest.mark.parametrize("renderable", [HOSTILE, Text(HOSTILE, style="red")], ids=["str", "Text"])
def test_a_terminal_obeys_nothing(
    renderable: str | Text, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("a heading that is wide enough for any of the names below", title=HOSTILE)
    table.add_row(renderable)
    show(renderable)
    show(table)
    Terminal(stderr=True).print(renderable)
    printed = capsys.readouterr()
    assert printed.out.count(SPELLED) == 3
    assert printed.err.strip() == SPELLED
    assert "\x1b" not in printed.out + printed.err


def test_cells_are_measured_as_they_are_spelled(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "size")
    table.add_row("\x1b[31m", "1")
    table.add_row("plain", "2")
    show(table)
    printed = capsys.readouterr().out
    assert "\\x1b[31m" in printed
    assert len({len(line) for line in printed.splitlines()}) == 1


def test_lines_pieces_and_documents(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"bundle: {HOSTILE}\nengine: ready")
    assert capsys.readouterr().out == f"bundle: {SPELLED}\\nengine: ready\n"
    say_piece(f"{HOSTILE}\n")
    assert capsys.readouterr().out == f"{SPELLED}\n"
    print_json({"name": HOSTILE})
    assert not set(HOSTILE[11:]) & set("\x1b\x9b\udcff") & set(capsys.readouterr().out)
