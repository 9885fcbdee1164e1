# SPDX-License-Identifier: Apache-2.0
"""Faults planted in a bundle: does `parity` catch each, and does `--by-layer` find its layer?

Builds a bundle of the checkpoint for the processor, plants one fault after another in copies of it,
and runs both comparisons on each.

    python benchmarks/planted_faults.py [--checkpoint DIR] [--json] [--only NAME ...]

`planted`, `caught` and `localised` count faults; `not_visible` names those that a tolerance cannot
see by their nature: which ones, depends on the checkpoint's numbers too. A fault that a layer by
itself shows, and the logits do not, is caught by `--by-layer` alone. A fault without a layer is
localised where it is caught at all. `--table` prints the table of docs/parity.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Annotated

import typer
from faults import beside, decoder
from faults.edits import Fault, NothingChanged, copy_bundle, plant

from tc_export import ParityResult

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "checkpoints" / "tc-llava-tiny"
MAX_FRAMES, MAX_LENGTH = 4, 160
FAULTS = [*decoder.FAULTS, *beside.FAULTS]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What both comparisons said of a fault; `expected` and `layer` are where it is."""

    name: str
    patterns: tuple[str, ...]
    by_parity: bool = False
    by: str = ""
    expected: int | str | None = None
    layer: int | str | None = None
    frame: str | None = None
    node: str | None = None
    pattern: str | None = None
    words: str | None = None
    unseen: str | None = None
    error: str | None = None

    @property
    def caught(self) -> bool:
        """True where either comparison fails."""
        return self.by_parity or self.layer is not None

    @property
    def localised(self) -> bool:
        """True where the right layer is named, and the right pattern where one is asked for."""
        if self.expected is None:
            return self.caught
        named = not self.patterns or self.pattern in self.patterns
        return self.layer == self.expected and named


def main(
    checkpoint: Annotated[Path, typer.Option(help="What is built.")] = DEMO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    table: Annotated[bool, typer.Option(help="Print the table of the documentation.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Faults to plant, by name.")] = None,
    max_frames: Annotated[int, typer.Option(help="Of the bundle.")] = MAX_FRAMES,
    max_length: Annotated[int | None, typer.Option(help="Of the bundle.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the bundle.")] = None,
) -> None:
    """Build a bundle, plant the faults, and print what was found."""
    from faults.remembered import remember_pytorch

    import tc_export

    remember_pytorch()
    chosen = [x for x in FAULTS if not only or x.name in only]
    with tempfile.TemporaryDirectory() as work:
        bundle = Path(work) / "bundle"
        tc_export.build(
            checkpoint,
            output=bundle,
            max_frames=max_frames,
            max_length=max_length or MAX_LENGTH,
            precision=precision,
            check_parity=False,
        )
        outcomes = []
        for fault in chosen:
            outcomes.append(judge(fault, bundle, Path(work)))
            _tell(outcomes[-1])
    if table:
        print("\n".join(as_rows(outcomes)))
    elif as_json:
        print(json.dumps(summary(outcomes)))
    else:
        print("\n".join(f"{x.name}: {x.words or x.error}" for x in outcomes))


def judge(fault: Fault, bundle: Path, work: Path) -> Outcome:
    """Plant a fault in a copy, and compare it both ways."""
    from tc_export.errors import TcExportError
    from tc_export.parity.judged_bundle import open_with_checkpoint
    from tc_export.parity.layers.check_bundle import check_bundle_by_layer

    with tempfile.TemporaryDirectory(dir=work) as folder:
        copy = copy_bundle(bundle, Path(folder) / "copy")
        try:
            expected = plant(fault, copy, open_with_checkpoint(bundle, None)[1])
        except NothingChanged as reason:
            return Outcome(name=fault.name, patterns=fault.patterns, unseen=str(reason))
        result, by = _parity(copy)
        culprit, error = None, None
        try:
            if fault.graph is not None:
                culprit = check_bundle_by_layer(copy).culprit
        except TcExportError as failure:
            error = str(failure)
    by_parity = result is None or not result.passed
    unseen = fault.unseen
    if unseen is None and not by_parity and culprit is None:
        unseen = _nothing_moved(_parity(bundle)[0], result)
    return Outcome(
        name=fault.name,
        by_parity=by_parity,
        by=by,
        expected=expected,
        layer=culprit.layer if culprit else None,
        frame=culprit.place if culprit else None,
        node=culprit.node if culprit else None,
        pattern=culprit.pattern if culprit else None,
        words=culprit.words if culprit else None,
        patterns=fault.patterns,
        unseen=unseen,
        error=error,
    )


def _parity(bundle: Path) -> tuple[ParityResult | None, str]:
    """What `parity` finds in a bundle, None where it refuses it, and what it says first."""
    import tc_export
    from tc_export.errors import TcExportError
    from tc_export.parity.tensors.report import failures

    try:
        result = tc_export.check_parity(bundle)
    except TcExportError as failure:
        return None, str(failure)
    found = failures(result)
    return result, found[0] if found else ""


def _nothing_moved(clean: ParityResult | None, faulty: ParityResult | None) -> str | None:
    """Why a fault is beyond any tolerance: it moves logits less than rounding does.

    None where it moves the median token, or the worst, by more than PyTorch's own noise.
    """
    if clean is None or faulty is None:
        return None
    pairs = list(zip(clean.noise, faulty.noise, strict=True))
    added = max(sqrt(max(now.median_ratio**2 - x.median_ratio**2, 0.0)) for x, now in pairs)
    worst = max(now.ratio - x.ratio for x, now in pairs)
    if max(added, worst) > 1:
        return None
    return f"smaller than rounding: it moves the median token by {added:.2g} of PyTorch's own noise"


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    """The counts, and every fault."""
    visible = [x for x in outcomes if x.unseen is None]
    return {
        "planted": len(outcomes),
        "caught": sum(x.caught for x in visible),
        "localised": sum(x.localised for x in visible),
        "not_visible": [{"name": x.name, "reason": x.unseen} for x in outcomes if x.unseen],
        "faults": [{**asdict(x), "caught": x.caught, "localised": x.localised} for x in outcomes],
    }


def as_rows(outcomes: list[Outcome]) -> list[str]:
    """The table of docs/parity.md."""
    rows = ["| fault | `parity` | layer | what `--by-layer` says |", "|---|---|---|---|"]
    for x in outcomes:
        alone = "caught" if x.by_parity else "by `--by-layer` alone"
        caught = alone if x.caught else "not visible" if x.unseen else "not caught"
        where = "" if x.expected is None else str(x.expected)
        rows.append(f"| {x.name} | {caught} | {where} | {x.words or x.unseen or ''} |")
    return rows


def _tell(outcome: Outcome) -> None:
    if outcome.unseen and not outcome.caught:
        print(f"{outcome.name}: not visible: {outcome.unseen}", file=sys.stderr, flush=True)
        return
    words = "caught" if outcome.caught else "NOT CAUGHT"
    where = "localised" if outcome.localised else "NOT LOCALISED"
    print(
        f"{outcome.name}: {words}, {where}: {outcome.words or outcome.error}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
