# SPDX-License-Identifier: Apache-2.0
"""What each recipe costs: bytes, text with real language weights, and answers; and so of peers.

SmolLM2-135M in a LLaVA folder is quantised by each recipe, and reads passages that no calibration
saw, beside its own float32: every second topic of the manual that comes with Python. The
demonstration model is quantised by the same recipe, and asked generated questions.

    python benchmarks/quantisation.py --json
    python benchmarks/quantisation.py --recipe int4-awq --recipe mine.toml
    python benchmarks/quantisation.py --store     keeps rows and plot in benchmarks/results
    python benchmarks/quantisation.py --report    draws what is kept there, and measures nothing

KL is of each token's distribution, from the float32 model's to the quantised one's, in nats, the
mean over tokens. `bytes` are those of the decoder's layers, `accuracy_bytes` those of the
demonstration model's; `lost` and `won` are its answers that turned. Peers are rounding to the
nearest, and NNCF, which has an environment of its own:

    python -m venv .cache/nncf
    .cache/nncf/bin/pip install nncf==3.1.0 torch==2.10.0 transformers safetensors
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from quantising import makers, plot
from quantising.answers import marks

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.parity.cost.text import CheckpointReader, compare_readers
from tc_export.runtime.tokenizer import Tokenizer
from tc_export.tasks import Item, Split, make_items
from tc_export.tasks.passages import passages_of

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "checkpoints" / "tc-llava-tiny"
RESULTS = REPOSITORY / "benchmarks" / "results"
ROWS, PLOT = "quantisation.json", "quantisation.png"
NNCF = REPOSITORY / ".cache" / "nncf" / "bin" / "python"


def main(
    checkpoint: Annotated[
        Path | None, typer.Option(help="That reads. By default SmolLM2-135M in a LLaVA folder.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Names or paths; by default all that are shipped, and all peers."),
    ] = None,
    passages: Annotated[int, typer.Option(min=1, help="Of 128 tokens each.")] = 32,
    items: Annotated[
        int, typer.Option(min=1, help="Questions of every kind and grade: times 36.")
    ] = 50,
    nncf: Annotated[Path, typer.Option(help="The Python that has NNCF.")] = NNCF,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    store: Annotated[bool, typer.Option("--store", help="Keep rows and plot.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Draw what is kept.")] = False,
    results: Annotated[Path, typer.Option(help="Where rows and plot are kept.")] = RESULTS,
) -> None:
    """Quantise by each recipe and peer, and print a row for each."""
    if report:
        rows = json.loads((results / ROWS).read_text())
    else:
        if recipe is None and not nncf.exists():
            print(f"NNCF is left out: {nncf} is not there; {makers.INSTALL}", file=sys.stderr)
        chosen = map(makers.by_name, recipe) if recipe else makers.makers(nncf)
        source = open_checkpoint(checkpoint or smollm2())
        rows = list(measure(source, passages, items, list(chosen)))
    if store:
        (results / ROWS).write_text(json.dumps(rows, indent=1) + "\n")
    if store or report:
        plot.draw(rows, results / PLOT)
    if as_json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(" ".join(f"{value!s:>14}" for value in row.values()))


def smollm2() -> Path:
    """The folder that the tests make of the package with SmolLM2's weights."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.checkpoint.real_language import real_language_checkpoint

    return real_language_checkpoint()


def measure(
    source: Checkpoint, passages: int, items: int, chosen: Sequence[makers.Maker]
) -> list[dict[str, Any]]:
    """A row for the float32 models, and one for each maker."""
    bench = Bench(source, passages, items)
    rows = [bench.float_row()]
    for maker in chosen:
        rows.append(bench.row(maker))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


@dataclass
class Bench:
    """Both models in float32, and what they make of the passages and the questions."""

    source: Checkpoint
    passages: int
    items: int
    demo: Checkpoint = field(default_factory=lambda: open_checkpoint(DEMO))

    def __post_init__(self) -> None:
        tokenizer = Tokenizer.load(self.source.folder)
        self.token_ids = passages_of(tokenizer, self.passages, held_out=True)
        self.reader = CheckpointReader(self.source, self.token_ids)
        self.questions: list[Item] = make_items(Split.TEST, self.items)
        self.right = marks(self.demo, self.questions)

    def float_row(self) -> dict[str, Any]:
        """The figures of no recipe."""
        none = makers.Made(checkpoint=self.source, layer_bytes=makers.layer_bytes(self.source))
        demo = makers.Made(checkpoint=self.demo, layer_bytes=makers.layer_bytes(self.demo))
        return self._figures("none", none, demo, is_peer=False, seconds=0.0)

    def row(self, maker: makers.Maker) -> dict[str, Any]:
        """The figures of one way to few bits."""
        with tempfile.TemporaryDirectory() as scratch:
            text, answers = Path(scratch, "text"), Path(scratch, "answers")
            text.mkdir()
            answers.mkdir()
            start = time.perf_counter()
            made = maker.make(self.source, text)
            seconds = time.perf_counter() - start
            demo = maker.make(self.demo, answers)
            return self._figures(maker.name, made, demo, is_peer=maker.is_peer, seconds=seconds)

    def _figures(
        self, name: str, made: makers.Made, demo: makers.Made, *, is_peer: bool, seconds: float
    ) -> dict[str, Any]:
        cost = compare_readers(
            self.reader, CheckpointReader(made.checkpoint, self.token_ids), self.token_ids
        )
        right = marks(demo.checkpoint, self.questions)
        turned = list(zip(self.right, right, strict=True))
        return {
            "recipe": name,
            "bytes": made.layer_bytes,
            "perplexity": round(cost.quantised_perplexity, 3),
            "kl": float(f"{cost.kl:.3g}"),
            "accuracy": round(sum(right) / len(right), 4),
            "peer": is_peer,
            "same_token": round(cost.same_token, 4),
            "seconds": round(seconds, 1),
            "accuracy_bytes": demo.layer_bytes,
            "accuracy_items": len(right),
            "lost": sum(before and not after for before, after in turned),
            "won": sum(after and not before for before, after in turned),
        }


if __name__ == "__main__":
    typer.run(main)
