# SPDX-License-Identifier: Apache-2.0
"""The model card of a trained demonstration model, written from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tc_export.demo_model.curves import draw_curves
from tc_export.demo_model.state import Run
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Kind
from tc_export.tasks.clips import STEPS

CURVES_PICTURE, CURVES_DATA = "curves.png", "curves.json"


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """Accuracy on the test set, beside what guessing the commonest answer would reach."""

    items_each: int
    accuracy: Mapping[Kind, float]
    best_guess: Mapping[Kind, float]

    __test__ = False  # not a test case, whatever pytest makes of the name

    @property
    def overall(self) -> float:
        """Mean over the kinds, which all have equally many items."""
        return sum(self.accuracy.values()) / len(self.accuracy)

    @property
    def worst_temporal(self) -> tuple[Kind, float]:
        """The kind that needs time on which the model does worst."""
        temporal = [(kind, share) for kind, share in self.accuracy.items() if kind.needs_time]
        return min(temporal, key=lambda pair: pair[1])


def card_files(model: TcLlava, run: Run, result: TestResult, command: str) -> dict[str, bytes]:
    """The card, the curves as a picture, and the curves as data, by file name."""
    measured = {"loss": run.curves.loss, "validation": run.curves.validation}
    return {
        "README.md": _text(model, run, result, command).encode(),
        CURVES_PICTURE: draw_curves(run.curves, run.step),
        CURVES_DATA: (json.dumps(measured) + "\n").encode(),
    }


def _text(model: TcLlava, run: Run, result: TestResult, command: str) -> str:
    temporal = model.config.temporal
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    rows = "\n".join(
        f"| {kind.value} | {'yes' if kind.needs_time else 'no'} | {100 * share:.1f} | "
        f"{100 * result.best_guess[kind]:.1f} |"
        for kind, share in result.accuracy.items()
    )
    each, items = result.items_each, result.items_each * len(result.accuracy)
    overall = f"{100 * result.overall:.1f} %"
    worst, share = result.worst_temporal[0].value, f"{100 * result.worst_temporal[1]:.1f} %"
    side, tokens = model.config.vision.image_size, model.config.tokens_per_frame
    batch, seed, threads = run.config.batch_size, run.config.seed, run.config.threads
    minutes = f"{run.seconds / 60:.0f} minutes"
    commands = "\n".join(
        f"    {command} --steps {steps} --seed {seed}{' --resume' if number else ''}"
        for number, steps in enumerate([*run.prolongs, run.config.steps])
    )
    return f"""\
---
license: apache-2.0
pipeline_tag: video-text-to-text
tags: [tc-llava, synthetic]
---
# tc-llava-tiny

A LLaVA of {million:.2f} million parameters that watches: it answers questions about short generated
clips, most of which no single frame can answer. It exists so that an export can be judged by its
answers; it knows nothing of the real world.

- Architecture: LLaVA (CLIP-type vision tower, projector, LLaMA-type decoder) with TC-LLaVA's
  temporal dual RoPE (gamma {temporal.gamma:g}) and the mask `{temporal.mask}`.
- Input: {STEPS} frames of {side} x {side} pixels, sampled uniformly; {tokens} tokens a frame.
- Prompt: `USER: <video>\\n{{question}} ASSISTANT:`; the answer is one word.

## Accuracy on the test set

{items} items, {each} of each kind in three grades of difficulty, on combinations that are not in
the training set. An answer counts when it is exactly the right word.
Overall **{overall}**; worst kind that needs time: {worst}, {share}.

| kind | needs time | % right | % by always giving the commonest answer |
|---|---|---|---|
{rows}

## Training

From scratch, on clips that are drawn on the way (`tc_export.tasks`, split `train`), by next-token
loss on the answer: {run.step} steps of {batch} items, seed {seed}, Muon for the matrices and AdamW
for the rest, {minutes} of wall time on {threads} CPU thread(s).

{commands}

![training loss, and validation accuracy by kind]({CURVES_PICTURE})

Limits: figures of four shapes and six colours on dark backgrounds, the questions of
`tc_export.tasks`, and English only. Asked anything else, it still answers with one of its words.
"""
