# SPDX-License-Identifier: Apache-2.0
"""The training loop: next-token loss on the answers, seeded, and resumable to the bit.

A step's items follow from the seed and the step alone, so a resumed run sees what it would have
seen, and there is no state of a random generator to save.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

from tc_export.config import ModelConfig
from tc_export.demo_model.batches import Batcher, predict
from tc_export.demo_model.config import TrainingConfig
from tc_export.demo_model.evaluation import accuracy
from tc_export.demo_model.state import Optimisers, Run, restore_run, save_run
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import GRADES, Item, Kind, Split, make_item, make_items

INITIAL_STD = 0.02
INITIAL_PLACE_STD = 0.1  # of the places in a frame: with less, they are learnt late
BETAS = (0.9, 0.98)
GRADE_SHARE = 0.1  # share of the training after which the next grade comes in
# How often a kind comes: those that are learnt slowly come more often.
WEIGHTS = dict.fromkeys(Kind, 1) | {
    Kind.DIRECTION: 2,
    Kind.ORDER: 2,
    Kind.FIRST_LAST: 2,
    Kind.FLASHES: 3,
    Kind.BEFORE_AFTER: 3,
    Kind.SPEED: 2,
    Kind.STATE_CHANGE: 2,
    Kind.COLOUR: 2,
    Kind.SHAPE: 3,
    Kind.POSITION: 2,
}

# And late, in a run that is prolonged: what is still confused then.
LATE_WEIGHTS = dict.fromkeys(Kind, 1) | {
    Kind.DIRECTION: 7,
    Kind.ORDER: 2,
    Kind.FLASHES: 2,
    Kind.BEFORE_AFTER: 3,
    Kind.PART: 2,
    Kind.COLOUR: 2,
    Kind.SHAPE: 2,
}
LATE_GRADES = (1, 1, 3)  # how often each grade comes then


def new_model(config: ModelConfig, seed: int) -> TcLlava:
    """A model with random weights: normal for matrices and embeddings, norms and biases neutral."""
    generator = torch.Generator().manual_seed(seed)
    model = TcLlava(config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=INITIAL_STD, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    embeddings = model.vision.vision_tower.embeddings
    nn.init.normal_(embeddings.class_embedding, std=INITIAL_STD, generator=generator)
    nn.init.normal_(
        embeddings.position_embedding.weight, std=INITIAL_PLACE_STD, generator=generator
    )
    return model


def step_items(config: TrainingConfig, step: int) -> list[Item]:
    """The training items of a step: kinds by weight, and harder grades by and by."""
    rng = random.Random(f"{config.seed}/{step}")
    is_late = step >= config.late_from
    weights = LATE_WEIGHTS if is_late else WEIGHTS
    chosen = rng.choices(list(weights), list(weights.values()), k=config.batch_size)
    reached = 1 + int(step / config.steps / GRADE_SHARE)
    grades = GRADES[: min(reached, config.hardest_grade)]
    if is_late:
        drawn = rng.choices(GRADES, LATE_GRADES, k=config.batch_size)
    else:
        drawn = [rng.choice(grades) for _ in chosen]
    first = (config.seed << 40) + step * config.batch_size
    return [
        make_item(kind, grade, Split.TRAIN, first + number)
        for number, (kind, grade) in enumerate(zip(chosen, drawn, strict=True))
    ]


def rate_share(config: TrainingConfig, step: int) -> float:
    """Share of the learning rates: linear warm-up, then a cosine down to the final share."""
    if step < config.warm_up_steps:
        return (step + 1) / config.warm_up_steps
    done = (step - config.warm_up_steps) / max(1, config.steps - config.warm_up_steps)
    return config.final_share + (1 - config.final_share) * (1 + math.cos(math.pi * done)) / 2


def new_optimisers(model: TcLlava, config: TrainingConfig) -> Optimisers:
    """Muon for the matrices of linear layers, AdamW for the rest.

    Muon (Jordan et al. 2024, in PyTorch since 2.9) replaces a matrix's gradient by the nearest
    orthogonal one. A tied head is an embedding, and embeddings are AdamW's.
    """
    embedding = model.embed_tokens.weight
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight is not embedding
    ]
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = torch.optim.Muon(
        [{"params": matrices, "initial_lr": config.matrix_rate}],
        lr=config.matrix_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [{"params": rest, "initial_lr": config.other_rate}],
        lr=config.other_rate,
        betas=BETAS,
        weight_decay=0.0,
    )
    return muon, adamw


def train(
    model: TcLlava,
    batcher: Batcher,
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> Run:
    """Train the model in place up to `config.steps`, and save the run in `folder` on the way.

    `stop_after` ends this call early, at that step, with the run saved: it can be resumed.
    """
    torch.set_num_threads(config.threads)
    optimisers = new_optimisers(model, config)
    run = restore_run(folder, config, model, optimisers) if resume else Run(config=config)
    last = min(config.steps, stop_after or config.steps)
    validation = make_items(Split.VALIDATION, config.validation_items_each)
    model.train()
    begun = time.monotonic() - run.seconds
    with Progress() as progress:
        bar = progress.add_task("training", total=config.steps, completed=run.step)
        while run.step < last:
            loss = train_step(model, optimisers, batcher, config, run.step)
            run.step += 1
            run.seconds = time.monotonic() - begun
            run.curves.add_loss(run.step, loss)
            progress.update(bar, completed=run.step, description=f"training, loss {loss:.3f}")
            if run.step % config.validate_every == 0 or run.step == config.steps:
                run.curves.add_validation(run.step, accuracy(model, batcher, validation))
                progress.console.print(summary(run))
            if run.step % config.save_every == 0 or run.step == last:
                save_run(folder, run, model, optimisers)
    return run


def train_step(
    model: TcLlava,
    optimisers: Optimisers,
    batcher: Batcher,
    config: TrainingConfig,
    step: int,
) -> float:
    """One step of the optimisers; returns the loss before it."""
    batch = batcher(step_items(config, step))
    logits = predict(model, batch, batcher.visual_token)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), config.clip_gradient_norm)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * rate_share(config, step)
        optimiser.step()
        optimiser.zero_grad()
    return loss.item()


def summary(run: Run) -> str:
    """One line on where the run stands: step, speed, and the last accuracy of each kind."""
    step, by_kind = run.curves.validation[-1]
    shares = "  ".join(f"{name} {100 * share:.0f}" for name, share in by_kind.items())
    return f"step {step}, {run.step / run.seconds:.2f} steps/s, % right: {shares}"
