# SPDX-License-Identifier: Apache-2.0
"""The paper's two sweeps in small: the four masks (its Figure 3), and gamma (its Figure 4).

Each setting of the method is trained from scratch on the video-QA suite, with the same budget, the
same first weights and the same items for one seed; then it answers the test set, once in order and
once under each perturbation of its sense of time. A run's result is stored as it ends.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from pydantic import Field

from tc_export.config import AttentionMask, Config, TemporalConfig
from tc_export.demo_model.batches import Batcher
from tc_export.demo_model.config import TrainingConfig, tiny_model
from tc_export.demo_model.evaluation import accuracy
from tc_export.demo_model.tokenizer import make_tokenizer
from tc_export.demo_model.trainer import new_model, train
from tc_export.errors import InputError, UsageError
from tc_export.parity.answers.perturbations import Perturbation, perturb
from tc_export.tasks import GRADES, Item, Kind, Split, make_items

SEEDS = (0, 1, 2)
GAMMAS = (0.0, 0.5, 1.0, 2.0)
BY_MASK = tuple(TemporalConfig(mask=mask) for mask in AttentionMask)
BY_GAMMA = tuple(TemporalConfig(gamma=gamma) for gamma in GAMMAS)
SETTINGS = tuple(dict.fromkeys((*BY_MASK, *BY_GAMMA)))
"""Every setting once: the method's own stands in both sweeps."""

LAYERS = 2  # of the decoder; the demonstration model has twice as many
HARDEST_GRADE = 1  # a run of a few minutes learns the easy items only
TEST_ITEMS_EACH = 30  # of every kind
TOOLS = ("tc-export", "torch", "numpy")
IN_ORDER = "in order"

ByKind = dict[Kind, float]


class AblationRun(Config):
    """One training run and what came of it. Accuracies are shares of right answers."""

    temporal: TemporalConfig
    training: TrainingConfig
    test_items_each: int = Field(gt=0)
    accuracy: ByKind
    perturbed: dict[Perturbation, ByKind]  # under each perturbation of the sense of time
    seconds: float = Field(ge=0)  # of training, on a machine that may have been shared
    versions: dict[str, str]

    def mean_accuracy(self, frames: str = IN_ORDER, *, needs_time: bool = True) -> float:
        """Mean over the kinds that need time, or over the others, for frames so ordered."""
        by_kind = self.accuracy if frames == IN_ORDER else self.perturbed[Perturbation(frames)]
        return mean(share for kind, share in by_kind.items() if kind.needs_time is needs_time)


def run_setting(temporal: TemporalConfig, training: TrainingConfig) -> AblationRun:
    """Train one model from scratch and test it."""
    tokenizer = make_tokenizer()
    config = tiny_model(len(tokenizer), temporal, layers=LAYERS)
    model = new_model(config, training.seed)
    batcher = Batcher(config, tokenizer)
    # A run is short: one that is killed starts again, so its state is not worth keeping.
    with tempfile.TemporaryDirectory() as folder:
        run = train(model, batcher, training, Path(folder))
    items = make_items(Split.TEST, TEST_ITEMS_EACH, grades=GRADES[:HARDEST_GRADE])

    def by_kind(asked: Iterable[Item]) -> ByKind:
        shares = accuracy(model, batcher, list(asked))
        return {kind: round(share, 4) for kind, share in shares.items()}

    return AblationRun(
        temporal=temporal,
        training=training,
        test_items_each=TEST_ITEMS_EACH,
        accuracy=by_kind(items),
        perturbed={
            perturbation: by_kind(perturb(item, perturbation) for item in items)
            for perturbation in Perturbation
        },
        seconds=round(run.seconds, 1),
        versions={"python": platform.python_version(), **{name: version(name) for name in TOOLS}},
    )


def training_of(steps: int, seed: int, threads: int) -> TrainingConfig:
    """The budget of one run: the demonstration model's settings, over fewer steps."""
    return TrainingConfig(
        steps=steps,
        seed=seed,
        hardest_grade=HARDEST_GRADE,
        threads=threads,
        # Only the end counts, and the test set judges that.
        validate_every=steps,
        validation_items_each=1,
        save_every=steps,
    )


def result_file(folder: Path, temporal: TemporalConfig, seed: int) -> Path:
    """Where a run's result is stored."""
    return folder / f"{temporal.mask}-gamma-{temporal.gamma:g}-seed-{seed}.json"


def store(folder: Path, run: AblationRun) -> None:
    """Write a result; the file appears as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = result_file(folder, run.temporal, run.training.seed)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(run.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    new.rename(path)


def read_results(folder: Path) -> list[AblationRun]:
    """Read all stored results.

    Raises:
        InputError: a file is not such a result.
        UsageError: the results are not of one budget, and cannot be compared.
    """
    runs = []
    for path in sorted(folder.glob("*-seed-*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            runs.append(AblationRun.read(values, where=str(path)))
        except (ValueError, TypeError, UsageError) as error:
            raise InputError(
                f"{path} is not the result of a run: {error}", hint="delete it, and run it again"
            ) from error
    for run in runs[1:]:
        _check_same_budget(folder, runs[0].training, run.training, "stored", "also stored")
    return runs


def missing_runs(
    folder: Path, steps: int, threads: int
) -> list[tuple[TemporalConfig, TrainingConfig]]:
    """The runs that are not stored yet, seed by seed: a part of them is comparable already.

    Raises:
        InputError: a stored file is not such a result.
        UsageError: what is stored is of another budget.
    """
    stored = read_results(folder)
    wanted = [
        (temporal, training_of(steps, seed, threads)) for seed in SEEDS for temporal in SETTINGS
    ]
    for run in stored[:1]:  # the others are of the same budget
        _check_same_budget(folder, run.training, wanted[0][1], "stored", "wanted")
    done = {(run.temporal, run.training.seed) for run in stored}
    return [run for run in wanted if (run[0], run[1].seed) not in done]


def _check_same_budget(
    folder: Path, one: TrainingConfig, other: TrainingConfig, name_one: str, name_other: str
) -> None:
    """All settings of two runs must agree, but for the seed and what changes no result."""
    free = {"seed", "threads", "save_every", "validate_every", "validation_items_each"}
    left, right = one.model_dump(exclude=free), other.model_dump(exclude=free)
    differing = [
        f"  {name}: {left[name]} {name_one}, {right[name]} {name_other}"
        for name in left
        if left[name] != right[name]
    ]
    if differing:
        raise UsageError(
            f"the results in {folder} cannot be compared, they are of another budget:\n"
            + "\n".join(differing),
            hint="ask for the same --steps, delete the results, or use another --folder",
        )
