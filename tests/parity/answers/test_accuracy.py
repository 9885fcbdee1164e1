# SPDX-License-Identifier: Apache-2.0
"""Judging engines by their answers, on the demonstration checkpoint: the whole road, and faults.

The two anchors are independent of the code under test: the accuracy that the training's own
evaluation finds on the same items, and faults planted in the exported graph.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.cli.main import main
from tc_export.config import ModelConfig
from tc_export.demo_model.batches import Batcher, predict
from tc_export.demo_model.config import tiny_model
from tc_export.demo_model.evaluation import accuracy
from tc_export.engine.interface import Buffer, Engine, TensorInfo
from tc_export.model.positions import Clip, Text
from tc_export.native.find import find_native_library
from tc_export.parity.answers.accuracy import Pair, TaskResult, Thresholds
from tc_export.parity.answers.asking import (
    LONGEST_ANSWER,
    VISUAL_PLACE,
    Language,
    Question,
    Respondent,
)
from tc_export.parity.answers.check_bundle import check_answers
from tc_export.parity.answers.liveness import Movement
from tc_export.parity.answers.perturbations import Perturbation, perturb
from tc_export.parity.answers.report import task_failures, tasks_as_json
from tc_export.parity.torch_engine import TorchBuffer
from tc_export.pipeline import BuildRequest, build
from tc_export.runner import SilentReporter
from tc_export.tasks import Item, Kind, Split, make_items
from tc_export.tasks.clips import STEPS
from tests.bundled import reseal
from tests.repository import DEMO_CHECKPOINT

CHECKPOINT = DEMO_CHECKPOINT
KEYS = {
    "items",
    "accuracy",
    "by_kind",
    "flips",
    "interval",
    "p_value",
    "liveness",
    "margins",
    "answers_alike",
    "cost",
    "passed",
}

pytestmark = pytest.mark.xdist_group("demo_bundle")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration bundle. Not to be changed: copy it first."""
    folder: Path = tmp_path_factory.mktemp("demo") / "bundle"
    request = BuildRequest(
        checkpoint=CHECKPOINT, output=folder, max_frames=STEPS, check_parity=False
    )
    build(request, SilentReporter())
    return folder


@pytest.fixture(scope="module")
def right(demo: Path) -> TaskResult:
    return check_answers(demo, items_each=1, native=False, threads=1)


def with_fault(demo: Path, folder: Path, fault: Callable[[onnx.ModelProto], None]) -> Path:
    bundle = Path(shutil.copytree(demo, folder / "bundle"))
    path = bundle / graph_path("decoder")
    model = onnx.load(path, load_external_data=False)
    fault(model)
    path.unlink()
    onnx.save(model, path)
    return reseal(bundle)


def mask_dropped(model: onnx.ModelProto) -> None:
    """Causal among visual tokens: each query sees the rows up to its own."""
    one = onnx.numpy_helper.from_array(torch.tensor(1).numpy(), "one")
    model.graph.initializer.append(one)
    for node in model.graph.node:
        node.input[:] = ["causal_end" if name == "kv_end" else name for name in node.input]
    make = onnx.helper.make_node
    model.graph.node.insert(0, make("Add", ["position_ids", "one"], ["next"]))
    cast = make("Cast", ["next"], ["causal_end"], to=onnx.TensorProto.INT32)
    model.graph.node.insert(1, cast)


def gamma_zeroed(model: onnx.ModelProto) -> None:
    """No temporal position."""
    gammas = [a for node in model.graph.node for a in node.attribute if a.name == "gamma"]
    assert gammas
    for gamma in gammas:
        gamma.f = 0.0


def test_the_right_engine_passes(right: TaskResult) -> None:
    assert right.passed, task_failures(right)
    assert len(right.pairs) == len(Kind) * 3
    assert not right.flips
    temporal = sum(kind.needs_time for kind in Kind)
    assert {len(right.perturbed[perturbation]) for perturbation in Perturbation} == {temporal * 3}
    # Rounding alone: far from the threshold.
    assert all(movement.relative_difference < 1e-3 for movement in right.movements.values())
    # And the model does take notice of time.
    assert all(movement.pytorch_share > 0.05 for movement in right.movements.values())


def test_pytorch_answers_what_the_training_measures(right: TaskResult) -> None:
    checkpoint = open_checkpoint(CHECKPOINT)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)
    batcher = Batcher(checkpoint.config.model, tokenizer)
    model = checkpoint.load_model(torch.float32)
    items = make_items(Split.TEST, 1)
    for kind, share in accuracy(model, batcher, items).items():
        assert right.by_kind[kind].pytorch == right.by_kind[kind].engine == pytest.approx(share)
    batch = batcher(items)
    with torch.no_grad():
        logits = predict(model, batch, batcher.visual_token)
    gaps = logits.topk(2).values.diff().abs().flatten(1).min(1).values.tolist()
    for pair, gap in zip(right.pairs, gaps, strict=True):
        if pair.pytorch_right:  # else the tokens before are not those that were predicted
            assert pair.pytorch_margin == pytest.approx(gap, abs=1e-4)
            assert pair.engine_margin == pytest.approx(gap, abs=1e-4)
    for perturbation in Perturbation:
        under = [perturb(item, perturbation) for item in items if item.kind.needs_time]
        expected = accuracy(model, batcher, under)
        for kind, share in expected.items():
            marks = [x.pytorch_right for x in right.perturbed[perturbation] if x.item.kind is kind]
            assert sum(marks) / len(marks) == pytest.approx(share), (perturbation, kind)


@pytest.mark.parametrize("fault", [mask_dropped, gamma_zeroed], ids=lambda fault: fault.__name__)
def test_a_broken_engine_is_caught(
    demo: Path,
    right: TaskResult,
    tmp_path: Path,
    fault: Callable[[onnx.ModelProto], None],
) -> None:
    broken = check_answers(with_fault(demo, tmp_path, fault), items_each=1, native=False, threads=1)
    assert not broken.passed
    assert any("move differently" in line for line in task_failures(broken))
    # PyTorch's side is untouched by what is wrong with the engine.
    assert [pair.pytorch for pair in broken.pairs] == [pair.pytorch for pair in right.pairs]


def test_our_kernels_answer_alike(demo: Path, right: TaskResult) -> None:
    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    native = check_answers(demo, items_each=1, native=True, threads=1)
    assert native.passed, task_failures(native)
    assert [pair.engine for pair in native.pairs] == [pair.engine for pair in right.pairs]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(ended.value.code or 0), printed.out, " ".join(printed.err.split())


def test_the_command_prints_json_and_exits_by_the_verdict(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--tasks", "--items", 1, "--no-native", "--threads", 1)
    code, out, _ = run(capsys, "parity", demo, *options, "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document) == KEYS
    assert document["items"] == 36
    assert set(document["accuracy"]) == {"pytorch", "engine"}
    assert set(document["by_kind"]) == {kind.value for kind in Kind}
    assert set(document["liveness"]) == set(Perturbation)
    assert document["passed"] is True
    assert document["cost"] is None  # nothing was quantised
    broken = with_fault(demo, tmp_path, gamma_zeroed)
    code, out, err = run(capsys, "parity", broken, *options)
    assert code == 1
    assert "shuffled" in out
    assert "the engine does not answer as PyTorch does" in err
    # Whoever allows everything gets it.
    loose = ("--threshold", 1, "--liveness-threshold", 9)
    assert run(capsys, "parity", broken, *options, *loose)[0] == 0


def test_options_of_tasks_need_tasks(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "parity", bundle, "--items", 3)
    assert code == 2
    assert "--items" in err
    assert "add --tasks" in err


def test_a_bundle_for_fewer_frames_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "parity", bundle, "--tasks")
    assert code == 2
    assert f"--max-frames {STEPS}" in err


def pair(item: Item, pytorch: str, engine: str, margin: float = 1.0) -> Pair:
    return Pair(
        item=item,
        pytorch=pytorch,
        engine=engine,
        pytorch_margin=margin,
        engine_margin=margin / 2,
    )


def result_of(right: TaskResult, pairs: list[Pair], loss: float = 0.02) -> TaskResult:
    return TaskResult(
        pytorch="PyTorch",
        engine="engine",
        thresholds=Thresholds(loss=loss),
        pairs=tuple(pairs),
        perturbed=right.perturbed,
        movements=right.movements,
    )


def test_counts_of_a_result(right: TaskResult) -> None:
    items = make_items(Split.TEST, 4, kinds=[Kind.DIRECTION], grades=[1])
    others = ["nothing"] * 4
    said = [item.answer for item in items]
    # Right on both sides; lost; won; wrong on both and flipped.
    pairs = [
        pair(items[0], said[0], said[0].upper()),
        pair(items[1], said[1], others[1], margin=0.25),
        pair(items[2], others[2], said[2]),
        pair(items[3], others[3], "something", margin=8.0),
    ]
    result = result_of(right, pairs)
    assert (result.accuracy.pytorch, result.accuracy.engine) == (0.5, 0.5)
    assert result.p_value == 1.0
    document = tasks_as_json(result)
    assert [flip["seed"] for flip in document["flips"]] == [0, 1, 2, 3]
    assert document["margins"]["pytorch"]["smallest"] == 0.25
    assert document["margins"]["pytorch"]["percentile_50"] == 1.0
    assert document["margins"]["engine"]["smallest"] == 0.125
    assert result.passed


def test_loss_on_temporal_kinds_is_not_diluted_by_static_ones(right: TaskResult) -> None:
    static = make_items(Split.TEST, 30, kinds=[Kind.COLOUR], grades=[1])
    temporal = make_items(Split.TEST, 10, kinds=[Kind.ORDER], grades=[1])
    pairs = [pair(item, item.answer, item.answer) for item in static + temporal[1:]]
    pairs.append(pair(temporal[0], temporal[0].answer, "wrong"))
    assert result_of(right, pairs, loss=0.1).passed
    failing = result_of(right, pairs, loss=0.05)
    assert not failing.passed
    low, high = failing.interval
    assert low < -high < 0  # the engine is worse
    (line,) = task_failures(failing)
    assert line.startswith("kinds that need time: the engine answers 90.0% right, PyTorch 100.0%")
    assert [line.split(":")[0] for line in task_failures(result_of(right, pairs, loss=0.01))] == [
        "all items",
        "kinds that need time",
    ]


def test_an_engine_that_answers_right_and_moves_otherwise_fails(right: TaskResult) -> None:
    still = Movement(logits=1.0, pytorch=1.0, engine=0.0, difference=1.0, product=0.0)
    fails = replace(right, movements={**right.movements, Perturbation.FROZEN: still})
    assert not fails.passed
    (line,) = task_failures(fails)
    assert line.startswith("frames frozen: the engine's logits move differently")
    assert not replace(right, movements={}).passed, "nothing was judged"


CACHE = "past_key_values.0.key"


class Scripted(Engine):
    """Gives the same features always, and one row of logits after the other."""

    inputs: ClassVar = {
        CACHE: TensorInfo(CACHE, np.dtype(np.float32), ("batch", 2, "cache_rows", 4))
    }

    def __init__(self, config: ModelConfig, *rows: list[float]) -> None:
        super().__init__()
        shape = (STEPS, config.tokens_per_frame, config.text.hidden_size)
        self._features = np.zeros(shape, dtype=np.float32)
        self._rows = iter(np.array(rows, dtype=np.float32))

    def allocate(self, name: str, shape: Sequence[int]) -> Buffer:
        return TorchBuffer(torch.zeros(1))

    def _bind(self, name: str, buffer: Buffer) -> None:
        pass

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "pixel_values" in feeds:
            return {"visual_features": self._features}
        return {"logits": next(self._rows)[None, None]}


@pytest.mark.parametrize(
    ("rows", "text", "margin"),
    [
        # Token 3 ends the answer, and its own margin counts.
        ([[0, 9, 0, 0], [0, 0, 7, 5], [0, 0, 0, 1.5]], "1 2", 1.5),
        ([[0, 0, 0, 4], [9, 0, 0, 0]], "", 4.0),
        # One that does not end is cut.
        ([[2, 0, 1, 0]] * 99, " ".join("0" * LONGEST_ANSWER), 1.0),
    ],
)
def test_an_answer_ends(rows: list[list[float]], text: str, margin: float) -> None:
    config = tiny_model(vocabulary=4)
    engine = Scripted(config, *rows)
    clip = Clip(STEPS, config.tokens_per_frame)
    question = Question(
        pixel_values=np.zeros((STEPS, 3, 32, 32), dtype=np.float32),
        segments=(Text(1), clip, Text(1)),
        token_ids=np.array([1, *[VISUAL_PLACE] * clip.length, 2]),
    )
    language = Language(
        prepare=lambda frames, words: question,
        decode=lambda tokens: " ".join(map(str, tokens)),
        end_tokens=[3],
    )
    table = np.zeros((4, config.text.hidden_size), dtype=np.float32)
    side = Respondent(
        name="scripted",
        config=config,
        vision=engine,
        decoder=engine,
        embed=lambda token_ids: table[token_ids],
    )
    (reply,) = side.replies(question, [range(STEPS)], language)
    assert (reply.text, reply.margin) == (text, margin)
    assert reply.first_logits.tolist() == rows[0]


def test_json_is_valid_where_an_engine_gives_no_numbers(right: TaskResult) -> None:
    item = make_items(Split.TEST, 1, kinds=[Kind.ORDER], grades=[1])[0]
    result = result_of(right, [pair(item, "a", "b", margin=float("nan"))])
    text = json.dumps(tasks_as_json(result), allow_nan=False)
    assert json.loads(text)["margins"]["engine"]["smallest"] == "nan"
