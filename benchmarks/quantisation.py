# SPDX-License-Identifier: Apache-2.0
"""What each recipe costs on text, with real language weights: bytes, perplexity, and KL.

SmolLM2-135M in a LLaVA folder is quantised by each recipe, and reads passages that no calibration
saw, beside its own float32: every second topic of the manual that comes with Python.

    python benchmarks/quantisation.py --json
    python benchmarks/quantisation.py --recipe int4-awq --recipe mine.toml

KL is of each token's distribution, from the float32 model's to the quantised one's, in nats, the
mean over tokens. `bytes` are those of the decoder's layers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.dtypes import DType
from tc_export.model.positions import Text, lay_out
from tc_export.parity.layerwise import LayerwiseModel, TokenSequence
from tc_export.quantize.calibration import passages_of
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.recipes import list_recipes, load_recipe
from tc_export.runtime.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]


def main(
    checkpoint: Annotated[
        Path | None, typer.Option(help="By default SmolLM2-135M in a LLaVA folder.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Names or paths; by default all that are shipped.")
    ] = None,
    passages: Annotated[int, typer.Option(min=1, help="Of 128 tokens each.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Quantise by each recipe, and print a row for each."""
    source = open_checkpoint(checkpoint or smollm2())
    token_ids = passages_of(Tokenizer.load(source.folder), passages, held_out=True)
    truth = log_probabilities(source, token_ids)
    rows: list[dict[str, Any]] = [row("none", source, token_ids, truth, truth, 0.0)]
    for name in recipe or [x.name for x in list_recipes()]:
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            made = quantize_checkpoint(source, load_recipe(name), Path(scratch) / "new")
            seconds = time.perf_counter() - start
            found = open_checkpoint(made.folder)
            rows.append(
                row(name, found, token_ids, truth, log_probabilities(found, token_ids), seconds)
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(rows))
    else:
        for each in rows:
            print(" ".join(f"{value:>14}" for value in each.values()))


def smollm2() -> Path:
    """The folder that the tests make of the package with SmolLM2's weights."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.checkpoint.real_language import real_language_checkpoint

    return real_language_checkpoint()


def log_probabilities(checkpoint: Checkpoint, token_ids: list[np.ndarray]) -> list[np.ndarray]:
    """[S, V] of each passage: of the token after each, in float32."""
    model = LayerwiseModel(checkpoint, DType.FLOAT32)
    sequences = [
        TokenSequence(
            embeds=model.embed(ids),
            layout=lay_out([Text(len(ids))], checkpoint.config.model.temporal)[0],
            logits_indices=np.arange(len(ids)),
        )
        for ids in token_ids
    ]
    return [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in model.logits(sequences)]


def row(
    name: str,
    checkpoint: Checkpoint,
    token_ids: list[np.ndarray],
    truth: list[np.ndarray],
    found: list[np.ndarray],
    seconds: float,
) -> dict[str, Any]:
    """The figures of one recipe."""
    losses = [-x[np.arange(len(ids) - 1), ids[1:]] for x, ids in zip(found, token_ids, strict=True)]
    divergence = [
        np.sum(np.exp(p) * (p - q), axis=1, dtype=np.float64)
        for p, q in zip(truth, found, strict=True)
    ]
    same = [p.argmax(axis=1) == q.argmax(axis=1) for p, q in zip(truth, found, strict=True)]
    layers = (x for key, x in checkpoint.stored().items() if key.startswith("decoder.layers."))
    return {
        "recipe": name,
        "bytes": sum(location.nbytes for location in layers),
        "perplexity": round(float(np.exp(np.concatenate(losses).mean())), 3),
        "kl": float(f"{np.concatenate(divergence).mean():.3g}"),
        "same_token": round(float(np.concatenate(same).mean()), 4),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    typer.run(main)
