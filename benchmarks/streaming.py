# SPDX-License-Identifier: Apache-2.0
"""From a question to the first token, after ever more frames: a session beside one-shot prefill.

    python benchmarks/streaming.py --json [--shape 135m] [--frames 8 --frames 128] [--threads 1]

A checkpoint of random weights (`real_size.py` has the shapes) is built into a bundle with room for
the most frames. One `VideoSession` watches; after each number of frames it is asked, and so is
`VideoLanguageModel.answer`, which is given the same frames at once. What a session's question costs
has two terms, each measured by itself in the same turns:

- `question_s`: the question's own work: finding its tokens, and reading them behind the prompt's
  first words alone, with no frame watched;
- `attention_s`: our attention op alone, once for each layer, from the question's tokens over as
  many rows as the session holds.

Seconds are medians of runs that take turns; `append_s` is over the frames since the row before, and
one-shot prefill, which is slow, runs once. `of_the_bar` is the last `first_token_s` over what is
allowed: 1.2 times the first one, and the attention that the longer cache adds. Needs the native
library.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from real_size import SHAPES, make_checkpoint
from rich.console import Console
from rich.table import Table

import tc_export
from tc_export.config import ModelConfig
from tc_export.model.positions import Text
from tc_export.native.find import require_native_library
from tc_export.ops.native import NativeKernels

FRAMES = (8, 16, 32, 64, 128)
QUESTION = "What is seen now, and what was seen first?"
ONE_TOKEN = tc_export.GenerationConfig(max_new_tokens=1)
TEXT_ROOM = 512
GROWTH = 1.2


@dataclass(frozen=True)
class Row:
    """What was measured once so many frames were watched."""

    frames: int
    rows: int
    append_s: float
    first_token_s: float
    question_s: float
    attention_s: float
    one_shot_s: float


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "135m",
    frames: Annotated[
        list[int] | None, typer.Option(min=1, help=f"Ask after so many; by default {FRAMES}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement.")] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; what is made is kept there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the bundle, watch, ask, and print a table or JSON."""
    torch.set_num_threads(threads)
    counts = sorted(set(frames or FRAMES))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = make_bundle(folder or Path(scratch), shape, counts[-1])
        model = tc_export.open(bundle, native=True, threads=threads)
        rows = [*measure(model, counts, repeats)]
    first, last = rows[0], rows[-1]
    allowed_s = GROWTH * first.first_token_s + last.attention_s - first.attention_s
    of_the_bar = round(last.first_token_s / allowed_s, 3)
    if as_json:
        report = {"shape": shape, "threads": threads, "of_the_bar": of_the_bar}
        print(json.dumps(report | {"measured": [asdict(row) for row in rows]}))
        return
    table = Table(*(name.replace("_", " ") for name in asdict(first)))
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in asdict(row).values()))
    Console().print(table)
    Console().print(f"of the bar: {of_the_bar}")


def make_bundle(folder: Path, shape: str, frames: int) -> Path:
    """A bundle of random weights that takes so many frames."""
    checkpoint = folder / f"llava-{shape}-{frames}-frames"
    if not (checkpoint / "config.json").is_file():
        grid = SHAPES[shape]["vision_config"]
        patches = (grid["image_size"] // grid["patch_size"]) ** 2
        make_checkpoint(checkpoint, shape, context=frames * patches + TEXT_ROOM)
    bundle = folder / f"{checkpoint.name}-cpu"
    tc_export.build(checkpoint, output=bundle, max_frames=frames, check_parity=False)
    return bundle


def measure(
    model: tc_export.VideoLanguageModel, counts: Iterable[int], repeats: int
) -> Iterable[Row]:
    """Watch, and stop after each number of frames to ask."""
    config = model.config.model
    side = config.vision.image_size
    random = np.random.default_rng(0)
    pictures: list[np.ndarray] = []
    head, question = model.prompt(QUESTION, 1, 1).around_clip()
    read = question_reader(model, head)
    attend = Attention(config, model.manifest.profile.max_length, len(question))
    with tc_export.VideoSession(model) as session:
        for count in counts:
            append_s = []
            while len(pictures) < count:
                pictures.append(random.integers(0, 256, (side, side, 3), np.uint8))
                start = time.perf_counter()
                session.append(pictures[-1], len(pictures))
                append_s.append(time.perf_counter() - start)
            first_token_s, question_s, attention_s = in_turns(
                [
                    lambda: session.answer(QUESTION, ONE_TOKEN),
                    read,
                    lambda rows=session.rows: attend(rows),
                ],
                repeats,
            )
            (one_shot_s,) = in_turns([lambda: model.answer(pictures, QUESTION, ONE_TOKEN)], 1)
            yield Row(
                frames=count,
                rows=session.rows,
                append_s=median(append_s),
                first_token_s=first_token_s,
                question_s=question_s,
                attention_s=attention_s,
                one_shot_s=one_shot_s,
            )


def in_turns(acts: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median seconds of each; where there are several runs, one before them does not count."""
    times: list[list[float]] = [[] for _ in acts]
    for turn in range(repeats + (repeats > 1)):
        for act, into in zip(acts, times, strict=True):
            start = time.perf_counter()
            act()
            if turn or repeats == 1:
                into.append(time.perf_counter() - start)
    return [median(each) for each in times]


def question_reader(
    model: tc_export.VideoLanguageModel, head: tuple[int, ...]
) -> Callable[[], object]:
    """Reads the question behind the head of the prompt, where no frame is."""
    speaker, sequence = model.speaker(), model.session()
    if head:
        sequence.prefill(speaker.embedding(np.array(head)), [Text(len(head))])

    def read() -> None:
        _, question = model.prompt(QUESTION, 1, 1).around_clip()
        next(speaker.read_on(sequence, [np.array(question)], 1))

    return read


class Attention:
    """The attention of all layers, alone; each layer has a cache of its own, as in the model."""

    def __init__(self, config: ModelConfig, cache_rows: int, tokens: int) -> None:
        text = config.text
        self._kernels = NativeKernels(require_native_library().handle)
        self._scale = text.head_dim**-0.5
        heads = (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
        self._qkv = [torch.randn(1, count, tokens, text.head_dim) for count in heads]
        shape = (1, text.num_key_value_heads, cache_rows, text.head_dim)
        self._caches = [
            (torch.randn(shape), torch.randn(shape)) for _ in range(text.num_hidden_layers)
        ]

    def __call__(self, rows: int) -> None:
        """From as many tokens as the question has, which stand behind `rows` others."""
        slots = torch.arange(rows, rows + self._qkv[0].shape[2])[None]
        kv_end = (slots + 1).int()
        for past in self._caches:
            self._kernels.block_causal_attention(
                *self._qkv, kv_end, slots, *past, self._scale, in_place=True
            )


if __name__ == "__main__":
    typer.run(main)
