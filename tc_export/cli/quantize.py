# SPDX-License-Identifier: Apache-2.0
"""`tc-export quantize`: a checkpoint to one whose matrices have four or eight bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tc_export.cli.options import JsonOption
from tc_export.cli.terminal import Terminal, print_json, say

if TYPE_CHECKING:
    from tc_export.quantize.checkpoint import Quantized

app = typer.Typer()


@app.command(
    epilog="Example: tc-export quantize --checkpoint llava-1.5-7b-hf --recipe int4-weights "
    "--output llava-1.5-7b-int4"
)
def quantize(
    checkpoint: Annotated[Path, typer.Option(help="Hugging Face folder of a LLaVA-family model.")],
    output: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe, or the path of a recipe's file. None repacks a checkpoint that another "
            "library has quantised.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store a checkpoint's matrices in few bits, layer by layer; it builds as any other.

    What another library has quantised (AutoAWQ, GPTQModel, llm-compressor, ModelOpt) is repacked
    bit for bit, without a recipe. A killed run goes on where it was. Nothing is measured here:
    `tc-export parity BUNDLE --tasks` says how well an engine of the new checkpoint answers.
    """
    from tc_export.checkpoint.hf_config import read_config

    packing = read_config(checkpoint).packing
    made = _quantize_with_bar(checkpoint, recipe, output)
    figures = {
        "folder": str(made.folder),
        "weights": made.weights,
        "bytes_before": made.bytes_before,
        "bytes_after": made.bytes_after,
        **({"repacked": packing.account} if packing else {}),
    }
    if as_json:
        print_json(figures)
    else:
        from tc_export.plan.units import spell_bytes

        before, after = spell_bytes(made.bytes_before), spell_bytes(made.bytes_after)
        say(f"{made.folder}: {made.weights} matrices are quantised; {before} became {after}")
        if packing:
            say(packing.account)


def _quantize_with_bar(checkpoint: Path, recipe: str | None, output: Path) -> Quantized:
    from rich.progress import DownloadColumn, Progress

    from tc_export.api import quantize_checkpoint

    console = Terminal(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        what = f"quantising by {Path(recipe).stem}" if recipe else "repacking"
        bar = progress.add_task(what, total=None)
        return quantize_checkpoint(
            checkpoint,
            recipe,
            output,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
