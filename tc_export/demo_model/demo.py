# SPDX-License-Identifier: Apache-2.0
"""The whole making of the demonstration checkpoint: train, test, write."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tc_export.demo_model.batches import Batcher
from tc_export.demo_model.card import TestResult, card_files
from tc_export.demo_model.config import TrainingConfig, tiny_model
from tc_export.demo_model.evaluation import accuracy
from tc_export.demo_model.folder import write_checkpoint
from tc_export.demo_model.tokenizer import make_tokenizer
from tc_export.demo_model.trainer import new_model, train
from tc_export.tasks import GRADES, Split, best_guess_by_kind, make_items

TEST_ITEMS_EACH = 20  # of every kind and grade


def train_demo(
    config: TrainingConfig, *, output: Path, run_folder: Path, resume: bool, command: str
) -> TestResult:
    """Train the model, measure it on the test set, and write the checkpoint with its card."""
    tokenizer = make_tokenizer()
    model_config = tiny_model(len(tokenizer))
    model = new_model(model_config, config.seed)
    batcher = Batcher(model_config, tokenizer)
    run = train(model, batcher, config, run_folder, resume=resume)
    items = make_items(Split.TEST, TEST_ITEMS_EACH)
    result = TestResult(
        items_each=TEST_ITEMS_EACH * len(GRADES),
        accuracy=accuracy(model, batcher, items),
        best_guess=best_guess_by_kind(items),
    )
    write_checkpoint(model, tokenizer, output, card=card_files(model, run, result, command))
    worst, share = result.worst_temporal
    Console().print(
        f"test set: {100 * result.overall:.1f} % right; worst kind that needs time: "
        f"{worst.value}, {100 * share:.1f} %; checkpoint in {output}"
    )
    return result
