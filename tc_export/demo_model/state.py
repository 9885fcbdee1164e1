# SPDX-License-Identifier: Apache-2.0
"""Saves and restores a training run: safetensors for tensors, JSON for the rest.

A run's folder holds `model.safetensors`, `optimisers.safetensors` and `run.json`, in a folder
`last` that is replaced as a whole, so that a run that is killed while it saves can still resume.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tc_export.demo_model.config import TrainingConfig
from tc_export.errors import InputError, UsageError
from tc_export.tasks import Kind

Optimisers = tuple[torch.optim.Optimizer, ...]

LAST, NEW, OLD = "last", "last.new", "last.old"
MODEL, OPTIMISERS, RUN = "model.safetensors", "optimisers.safetensors", "run.json"
LOSS_EVERY = 50  # steps between two points of the loss curve
SEPARATOR = "/"  # between a parameter's name and what an optimiser keeps of it


@dataclass
class Curves:
    """What was measured on the way: (step, mean training loss) and (step, accuracy by kind)."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """Losses since the last point of the loss curve."""

    def add_loss(self, step: int, loss: float) -> None:
        """Take in a step's loss; every so many steps their mean becomes a point."""
        self.recent.append(loss)
        if step % LOSS_EVERY == 0:
            self.loss.append((step, round(sum(self.recent) / len(self.recent), 5)))
            self.recent.clear()

    def add_validation(self, step: int, by_kind: Mapping[Kind, float]) -> None:
        """Take in the accuracy on the validation set."""
        self.validation.append(
            (step, {kind.value: round(share, 4) for kind, share in by_kind.items()})
        )


@dataclass
class Run:
    """Where a training run stands."""

    config: TrainingConfig
    prolongs: list[int] = field(default_factory=list)  # steps of the shorter runs before this one
    step: int = 0
    seconds: float = 0.0
    curves: Curves = field(default_factory=Curves)


def save_run(folder: Path, run: Run, model: nn.Module, optimisers: Optimisers) -> None:
    """Replace the run's last state by the present one."""
    new, last, old = folder / NEW, folder / LAST, folder / OLD
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(_named_parameters(model), new / MODEL)
    moments = {
        f"{name}{SEPARATOR}{kind}": tensor.contiguous()
        for name, parameter in model.named_parameters()
        for optimiser in optimisers
        for kind, tensor in optimiser.state.get(parameter, {}).items()
    }
    save_file(moments, new / OPTIMISERS)
    document = {
        "config": run.config.model_dump(),
        "prolongs": run.prolongs,
        "step": run.step,
        "seconds": run.seconds,
        "curves": asdict(run.curves),
    }
    (new / RUN).write_text(json.dumps(document, indent=1), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if last.exists():
        last.rename(old)
    new.rename(last)
    shutil.rmtree(old, ignore_errors=True)


def has_run(folder: Path) -> bool:
    """Whether there is a state to resume from."""
    return any((folder / name / RUN).is_file() for name in (LAST, OLD))


def restore_run(
    folder: Path, config: TrainingConfig, model: nn.Module, optimisers: Optimisers
) -> Run:
    """Restore model and optimisers in place.

    Raises:
        InputError: there is no state, or it is damaged.
        UsageError: it was trained with other settings.
    """
    if not has_run(folder):
        raise InputError(f"{folder} holds no training run to resume", hint="start without --resume")
    last = folder / (LAST if (folder / LAST / RUN).is_file() else OLD)
    try:
        document: dict[str, Any] = json.loads((last / RUN).read_text(encoding="utf-8"))
        weights, moments = load_file(last / MODEL), load_file(last / OPTIMISERS)
        before = TrainingConfig.read(document["config"], where=str(last / RUN))
        shorter = [before.steps] if before.steps < config.steps else []
        run = Run(
            config=config,
            prolongs=[int(steps) for steps in document.get("prolongs", [])] + shorter,
            step=int(document["step"]),
            seconds=float(document["seconds"]),
            curves=Curves(
                loss=[(step, loss) for step, loss in document["curves"]["loss"]],
                validation=[(step, by_kind) for step, by_kind in document["curves"]["validation"]],
                recent=document["curves"]["recent"],
            ),
        )
        _check_same(before, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
            _restore_moments(model, optimisers, moments)
    except UsageError:
        raise
    except Exception as error:
        raise InputError(
            f"the training run in {last} is damaged: {error}", hint="start again without --resume"
        ) from error
    return run


def _named_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _restore_moments(model: nn.Module, optimisers: Optimisers, moments: dict[str, Tensor]) -> None:
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, _, kind = key.partition(SEPARATOR)
        by_parameter.setdefault(name, {})[kind] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                optimiser.state[parameter] = by_parameter[names[parameter]]


def _check_same(before: TrainingConfig, now: TrainingConfig) -> None:
    """Everything must be as it was, but for what does not change the result of a step.

    There may be more steps than before: the rates then go on where the longer run's would be.
    """
    free = {"threads", "save_every"} | ({"steps"} if now.steps > before.steps else set())
    old, new = before.model_dump(exclude=free), now.model_dump(exclude=free)
    changed = [
        f"  {name}: {old[name]} before, {new[name]} now" for name in old if old[name] != new[name]
    ]
    if changed:
        raise UsageError(
            "the run was started with other settings:\n" + "\n".join(changed),
            hint="resume with the settings it was started with",
        )
