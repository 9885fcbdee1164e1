# SPDX-License-Identifier: Apache-2.0
"""The ablation: what is run, stored and refused, and the report on what is stored."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import typer

from tc_export.config import AttentionMask, TemporalConfig
from tc_export.demo_model import ablation
from tc_export.demo_model.ablation import (
    SEEDS,
    SETTINGS,
    AblationRun,
    missing_runs,
    read_results,
    result_file,
    run_setting,
    store,
    training_of,
)
from tc_export.demo_model.batches import Batcher
from tc_export.demo_model.config import TrainingConfig
from tc_export.demo_model.state import Run
from tc_export.errors import InputError, UsageError
from tc_export.model.tc_llava import TcLlava
from tc_export.parity.answers.perturbations import Perturbation, perturb
from tc_export.tasks import Item, Kind, Split, make_items
from tests.repository import REPOSITORY

STEPS = 5
METHOD = TemporalConfig()


def a_run(
    temporal: TemporalConfig, seed: int, *, right: float = 0.5, steps: int = STEPS
) -> AblationRun:
    """Kinds that need time are right at `right`, and at half of that under a perturbation."""
    return AblationRun(
        temporal=temporal,
        training=training_of(steps, seed, 1),
        test_items_each=1,
        accuracy={kind: right if kind.needs_time else 1.0 for kind in Kind},
        perturbed={
            perturbation: {kind: right / 2 if kind.needs_time else 1.0 for kind in Kind}
            for perturbation in Perturbation
        },
        seconds=1.5,
        versions={"torch": "2"},
    )


def test_both_sweeps_and_nothing_twice() -> None:
    assert len(SETTINGS) == len(set(SETTINGS)) == 7
    at_one = {setting.mask for setting in SETTINGS if setting.gamma == 1}
    assert at_one == set(AttentionMask)
    of_method = {s.gamma for s in SETTINGS if s.mask is AttentionMask.FRAME_BLOCK_CAUSAL}
    assert of_method == {0, 0.5, 1, 2}
    names = {result_file(Path(), setting, seed) for setting in SETTINGS for seed in SEEDS}
    assert len(names) == 21


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    wanted = missing_runs(tmp_path / "none yet", STEPS, threads=1)
    assert len(wanted) == 21
    # One seed of everything first.
    assert [temporal for temporal, _ in wanted[:7]] == list(SETTINGS)
    assert {training.steps for _, training in wanted} == {STEPS}
    done = a_run(METHOD, seed=1)
    store(tmp_path, done)
    assert read_results(tmp_path) == [done]
    left = missing_runs(tmp_path, STEPS, threads=2)
    assert len(left) == 20
    assert (METHOD, 1) not in [(temporal, training.seed) for temporal, training in left]


def test_another_budget_is_refused(tmp_path: Path) -> None:
    store(tmp_path, a_run(METHOD, seed=0))
    with pytest.raises(UsageError, match=f"steps: {STEPS} stored, {STEPS + 1} wanted"):
        missing_runs(tmp_path, STEPS + 1, threads=1)
    store(tmp_path, a_run(METHOD, seed=1, steps=STEPS + 2))
    with pytest.raises(UsageError, match="cannot be compared"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}'])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    store(tmp_path, a_run(METHOD, seed=0))
    path = result_file(tmp_path, METHOD, 0)
    path.write_text(text)
    with pytest.raises(InputError, match=path.name):
        read_results(tmp_path)


def test_a_run_trains_its_setting_and_is_judged_under_every_perturbation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[TemporalConfig] = []
    asked: list[list[Item]] = []

    def train(model: TcLlava, batcher: Batcher, config: TrainingConfig, folder: Path) -> Run:
        trained.append(model.config.temporal)
        return Run(config=config, step=config.steps, seconds=7.0)

    def accuracy(model: TcLlava, batcher: Batcher, items: Sequence[Item]) -> dict[Kind, float]:
        asked.append(list(items))
        return dict.fromkeys(Kind, len(asked) / 10)

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "accuracy", accuracy)
    monkeypatch.setattr(ablation, "TEST_ITEMS_EACH", 1)
    temporal = TemporalConfig(gamma=2.0, mask=AttentionMask.CAUSAL)
    run = run_setting(temporal, training_of(STEPS, 3, 1))
    assert trained == [run.temporal] == [temporal]
    assert (run.training.seed, run.seconds) == (3, 7.0)
    items = make_items(Split.TEST, 1, grades=[1])
    assert asked == [
        items,
        *([perturb(item, perturbation) for item in items] for perturbation in Perturbation),
    ]
    assert set(run.accuracy.values()) == {0.1}
    assert [set(by_kind.values()) for by_kind in run.perturbed.values()] == [{0.2}, {0.3}, {0.4}]


def test_a_short_run_really_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ablation, "TEST_ITEMS_EACH", 1)
    run = run_setting(TemporalConfig(gamma=0.0), training_of(2, 0, 1))
    store(tmp_path, run)
    assert read_results(tmp_path) == [run]
    assert run.seconds > 0


def test_means_are_over_the_kinds_asked_for() -> None:
    run = a_run(METHOD, 0, right=0.8)
    assert run.mean_accuracy() == pytest.approx(0.8)
    assert run.mean_accuracy("frozen") == pytest.approx(0.4)
    assert run.mean_accuracy("frozen", needs_time=False) == 1.0


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's module; training would fail the test."""
    path = REPOSITORY / "benchmarks" / "ablation.py"
    spec = importlib.util.spec_from_file_location("benchmark_ablation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "run_setting", lambda *_: pytest.fail("it trains"))
    return module


def test_report_draws_and_prints_from_what_is_stored(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, right in enumerate((0.5, 0.6, 0.7)):
        store(tmp_path, a_run(METHOD, seed, right=right))
    store(tmp_path, a_run(TemporalConfig(gamma=0.0), 0, right=0.25))
    benchmark.main(report=True, steps=STEPS, threads=1, folder=tmp_path)
    text = " ".join(capsys.readouterr().out.split())
    assert "60.0±10.0" in text
    assert "25.0" in text
    for name in ("masks.png", "gamma.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_report_of_nothing_says_so(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        benchmark.main(report=True, steps=STEPS, threads=1, folder=tmp_path)
    assert ended.value.exit_code == 3
    assert "holds no results" in capsys.readouterr().err


def test_training_stores_each_run_as_it_ends(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[TemporalConfig] = []

    def run_two(temporal: TemporalConfig, training: TrainingConfig) -> AblationRun:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(temporal)
        return a_run(temporal, training.seed)

    monkeypatch.setattr(benchmark, "run_setting", run_two)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(report=False, steps=STEPS, threads=1, folder=tmp_path)
    assert {run.temporal for run in read_results(tmp_path)} == set(done) == set(SETTINGS[:2])
