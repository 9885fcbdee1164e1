# SPDX-License-Identifier: Apache-2.0
"""`tc-export init`: a file of settings, with every key explained."""

from __future__ import annotations

from typing import Annotated

import typer

from tc_export.cli.terminal import say

app = typer.Typer()


@app.command(epilog="Example: tc-export init && tc-export build --target orin")
def init(
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
) -> None:
    """Write a tc-export.toml for this folder, with every key and its default as a comment."""
    from tc_export.cli.settings.file import FILE_NAME, write_new_settings_file

    write_new_settings_file(replace=force)
    say(f"settings: {FILE_NAME}")
