# SPDX-License-Identifier: Apache-2.0
"""Arguments and options of the command line that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_target(incomplete: str) -> list[str]:
    """The shipped targets that begin so, for the shell's completion."""
    from tc_export.targets import list_targets

    return [target.name for target in list_targets() if target.name.startswith(incomplete)]


BundleArgument = Annotated[Path, typer.Argument(help="Folder that `tc-export build` wrote.")]
TargetOption = Annotated[
    str,
    typer.Option(help="Device, or the path of a target's file.", autocompletion=complete_target),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="One format for both engines, or each: vision=fp16,decoder=bf16. By default the "
        "target's first.",
        show_default=False,
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        min=0,
        help="GB of memory that comparing with PyTorch may take. By default two thirds of what is "
        "free.",
        show_default=False,
    ),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Most tokens of a conversation: rows of the key/value cache. By default the frames' "
        "tokens and 512 more, within the model's context.",
        show_default=False,
    ),
]
NativeOption = Annotated[
    bool | None,
    typer.Option(
        "--native/--no-native",
        help="Demand our native library, or leave it out. By default it is used if it is there.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; one for each core if left out.", show_default=False),
]
