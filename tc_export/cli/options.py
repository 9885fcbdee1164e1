# SPDX-License-Identifier: Apache-2.0
"""Options of the command line that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="One format for both engines, or each: vision=fp16,decoder=bf16. By default the "
        "target's first.",
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
