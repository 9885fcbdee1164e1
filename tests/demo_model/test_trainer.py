# SPDX-License-Identifier: Apache-2.0
"""Training: it learns, resumes to the bit, and refuses what it cannot resume."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from tc_export.config import ModelConfig
from tc_export.demo_model.batches import Batcher
from tc_export.demo_model.config import TrainingConfig
from tc_export.demo_model.state import Curves, Run, has_run
from tc_export.demo_model.trainer import (
    new_model,
    new_optimisers,
    rate_share,
    step_items,
    train,
    train_step,
)
from tc_export.errors import InputError, UsageError
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Kind

SHORT = TrainingConfig(
    steps=4, batch_size=3, warm_up_steps=2, validate_every=2, validation_items_each=1, save_every=9
)


def trained(
    config: ModelConfig, batcher: Batcher, settings: TrainingConfig, folder: Path, **how: object
) -> tuple[TcLlava, Run]:
    model = new_model(config, seed=1)
    run = train(model, batcher, settings, folder, **how)  # type: ignore[arg-type]
    return model, run


def test_resumed_run_equals_one_in_one_go(
    config: ModelConfig, batcher: Batcher, tmp_path: Path
) -> None:
    whole, run = trained(config, batcher, SHORT, tmp_path / "whole")
    trained(config, batcher, SHORT, tmp_path / "parts", stop_after=3)
    parts, resumed = trained(config, batcher, SHORT, tmp_path / "parts", resume=True)
    assert resumed.step == run.step == 4
    assert resumed.curves == run.curves
    assert [step for step, _ in run.curves.validation] == [2, 4]
    assert len(run.curves.recent) == 4
    for (name, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, two), name
    before = dict(new_model(config, seed=1).named_parameters())
    assert not torch.equal(before["embed_tokens.weight"], whole.embed_tokens.weight)


def test_loss_curve_has_the_mean_of_each_stretch() -> None:
    curves = Curves()
    for step in range(1, 121):
        curves.add_loss(step, float(step))
    assert curves.loss == [(50, 25.5), (100, 75.5)]
    assert curves.recent == [float(step) for step in range(101, 121)]


def test_training_learns(config: ModelConfig, batcher: Batcher) -> None:
    settings = SHORT.model_copy(update={"steps": 25, "batch_size": 4})
    model = new_model(config, seed=1)
    optimisers = new_optimisers(model, settings)
    losses = [train_step(model, optimisers, batcher, settings, step) for step in range(25)]
    assert losses[0] == pytest.approx(math.log(config.text.vocab_size), abs=0.3)
    assert max(losses[-5:]) < 4.5  # it has found the answers' words, and that answers end


def test_resuming_nothing_is_refused(config: ModelConfig, batcher: Batcher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training run"):
        trained(config, batcher, SHORT, tmp_path, resume=True)


def test_resuming_with_other_settings_is_refused(
    config: ModelConfig, batcher: Batcher, tmp_path: Path
) -> None:
    trained(config, batcher, SHORT, tmp_path, stop_after=1)
    other = SHORT.model_copy(update={"seed": 5})
    with pytest.raises(UsageError, match="seed: 0 before, 5 now"):
        trained(config, batcher, other, tmp_path, resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimisers.safetensors", "run.json"])
def test_damaged_run_is_refused(
    config: ModelConfig, batcher: Batcher, tmp_path: Path, name: str
) -> None:
    trained(config, batcher, SHORT, tmp_path, stop_after=1)
    file = tmp_path / "last" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="damaged"):
        trained(config, batcher, SHORT, tmp_path, resume=True)


def test_a_kill_while_saving_leaves_the_run_before(
    config: ModelConfig, batcher: Batcher, tmp_path: Path
) -> None:
    trained(config, batcher, SHORT, tmp_path, stop_after=1)
    # As it is between the two renames, with a half-written successor.
    (tmp_path / "last").rename(tmp_path / "last.old")
    (tmp_path / "last.new").mkdir()
    assert has_run(tmp_path)
    _, run = trained(config, batcher, SHORT, tmp_path, resume=True)
    assert run.step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    document = json.loads((tmp_path / "last" / "run.json").read_text())
    assert document["step"] == 4
    shutil.rmtree(tmp_path / "last")
    assert not has_run(tmp_path)


def test_step_items_follow_from_seed_and_step() -> None:
    assert step_items(SHORT, 3) == step_items(SHORT, 3)
    assert step_items(SHORT, 3) != step_items(SHORT, 4)
    assert step_items(SHORT, 3) != step_items(SHORT.model_copy(update={"seed": 1}), 3)
    kinds = {tuple(item.kind for item in step_items(SHORT, step)) for step in range(20)}
    assert len(kinds) > 15


def test_learning_rate_rises_then_falls() -> None:
    settings = TrainingConfig(steps=100, warm_up_steps=10, final_share=0.2)
    shares = [rate_share(settings, step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[10] == 1
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[55] == pytest.approx(0.6)  # halfway from 1 to 0.2
    assert shares[-1] == pytest.approx(0.2, abs=0.001)


def test_grades_come_in_by_and_by() -> None:
    settings = TrainingConfig(steps=1000, batch_size=60)
    grades = [
        {item.grade for item in step_items(settings, step)} for step in (0, 99, 150, 200, 999)
    ]
    assert grades == [{1}, {1}, {1, 2}, {1, 2, 3}, {1, 2, 3}]


def test_kinds_come_by_weight() -> None:
    settings = TrainingConfig(batch_size=60)
    count = Counter(item.kind for step in range(40) for item in step_items(settings, step))
    assert set(count) == set(Kind)
    assert count[Kind.FLASHES] > 2 * count[Kind.PART]  # three times as often, but for luck


def test_a_prolonged_run_dwells_on_what_is_confused() -> None:
    settings = TrainingConfig(steps=200, batch_size=60, late_from=150)
    late = [item for step in range(150, 190) for item in step_items(settings, step)]
    count = Counter(item.kind for item in late)
    assert set(count) == set(Kind)
    assert count[Kind.DIRECTION] > 2 * count[Kind.FLASHES]  # 7 to 2
    grades = Counter(item.grade for item in late)
    assert grades[3] > 2 * max(grades[1], grades[2])  # 3 to 1
    early = Counter(item.grade for item in step_items(settings, 149))
    assert early[3] < 30


def test_a_run_of_easy_items_has_no_others() -> None:
    settings = TrainingConfig(steps=100, hardest_grade=1)
    assert {item.grade for step in (0, 50, 99) for item in step_items(settings, step)} == {1}


def test_a_run_may_be_prolonged_and_says_so(
    config: ModelConfig, batcher: Batcher, tmp_path: Path
) -> None:
    trained(config, batcher, SHORT, tmp_path)
    longer = SHORT.model_copy(update={"steps": SHORT.steps + 2})
    _, run = trained(config, batcher, longer, tmp_path, resume=True)
    assert (run.step, run.prolongs) == (SHORT.steps + 2, [SHORT.steps])
    _, again = trained(config, batcher, longer, tmp_path, resume=True)
    assert again.prolongs == [SHORT.steps]
    with pytest.raises(UsageError, match="steps"):
        trained(config, batcher, SHORT, tmp_path, resume=True)


def test_every_parameter_has_one_optimiser(config: ModelConfig) -> None:
    model = new_model(config, seed=1)
    muon, adamw = (
        [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for optimiser in new_optimisers(model, SHORT)
    )
    assert len({*muon, *adamw}) == len(muon) + len(adamw) == len(list(model.parameters()))
    assert all(parameter.ndim == 2 for parameter in muon)
    assert any(parameter is model.embed_tokens.weight for parameter in adamw)
