# SPDX-License-Identifier: Apache-2.0
"""Who is compared with whom: PyTorch stands in for the engine, so every error is known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tc_export.config import TemporalConfig
from tc_export.dtypes import DType
from tc_export.engine.interface import TensorInfo
from tc_export.model.tc_llava import TcLlava
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import DECODE_STEPS, Scenario, standard_scenarios
from tc_export.parity.tensors.sides import OpenSide
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tc_export.targets import Precisions
from tests.model.small_models import random_model
from tests.parity.stored import store

EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TEMPORAL = TemporalConfig(gamma=0.5)
CONFIG = random_model(TEMPORAL).config
SCENARIOS = standard_scenarios(CONFIG, max_frames=3, max_length=100)
ANSWERING = SCENARIOS[:3]
FORMATS = [
    Precisions.both("float32"),
    Precisions(vision="float16", decoder="bfloat16"),
    Precisions(vision="bfloat16", decoder="float16"),
]


# NumPy has no bfloat16: its numbers are handed over in float32.
FED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.float32}


def load(dtype: torch.dtype) -> TcLlava:
    return random_model(TEMPORAL).to(dtype)


def model_dtype(model: TcLlava) -> torch.dtype:
    return model.embed_tokens.weight.dtype


def info(name: str, dtype: Any, *axes: int | str) -> TensorInfo:
    return TensorInfo(name, np.dtype(dtype), ("B", *axes))


class Vision(TorchVisionEngine):
    """States its input as an exported graph does."""

    def __init__(self, model: TcLlava) -> None:
        super().__init__(model)
        size = CONFIG.vision.image_size
        self.inputs = {"pixel_values": info("pixel_values", FED[model_dtype(model)], 3, size, size)}


class Tampered(TorchDecoderEngine):
    """Changes the logits of some calls, counted from the first."""

    def __init__(self, model: TcLlava, tamper: Callable[[int, np.ndarray], np.ndarray]) -> None:
        super().__init__(model)
        floats = FED[model_dtype(model)]
        self.inputs = {
            name: info(name, floats, "S", CONFIG.text.hidden_size)
            if name == "inputs_embeds"
            else info(name, np.int32 if name == "kv_end" else np.int64, "S")
            for name in self.inputs
            if not name.startswith("past_key_values.")
        } | {name: x for name, x in self.inputs.items() if name.startswith("past_key_values.")}
        self.calls = 0
        self.fed: list[np.ndarray] = []
        self._tamper = tamper

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.calls <= DECODE_STEPS:  # the first scenario's, fed by the truth
            self.fed.append(feeds["inputs_embeds"])
        results = super()._run(feeds)
        results["logits"] = self._tamper(self.calls, results["logits"])
        self.calls += 1
        return results


def unchanged(call: int, logits: np.ndarray) -> np.ndarray:
    return logits


def judge(
    precisions: Precisions,
    tamper: Callable[[int, np.ndarray], np.ndarray] = unchanged,
    scenarios: Sequence[Scenario] = SCENARIOS,
) -> ParityResult:
    vision, decoder = (getattr(torch, name) for name in (precisions.vision, precisions.decoder))
    engine = OpenSide("engine", Vision(load(vision)), Tampered(load(decoder), tamper))
    return check(engine, precisions, scenarios)


def check(engine: OpenSide, precisions: Precisions, scenarios: Sequence[Scenario]) -> ParityResult:
    with tempfile.TemporaryDirectory() as folder:
        judges = references(store(load(torch.float32), Path(folder)), precisions)
        return check_parity(judges, engine, precisions, scenarios)


@pytest.mark.parametrize("precisions", FORMATS, ids=str)
def test_pytorch_itself_makes_just_pytorchs_error(precisions: Precisions) -> None:
    result = judge(precisions)
    assert result.passed
    batched = {x.stage for x in result.tensors if "in a batch" in x.stage}
    assert len({x.stage for x in result.tensors} - batched) == 2 * len(SCENARIOS) == 8
    assert len(batched) == 2
    for x in result.tensors:
        # Both are PyTorch, as a whole and layer by layer: they differ by the order of sums.
        assert x.pytorch_error > 0
        assert 0.1 * x.pytorch_error < x.engine_error < 5 * x.pytorch_error
        precision = precisions.vision if x.stage.endswith("vision") else precisions.decoder
        # Of the size of a few roundings of the graph's own format, not of the other's.
        epsilon = DType(precision).epsilon
        assert 0.001 * epsilon < x.pytorch_error < 200 * epsilon
        assert epsilon / 2 * abs(x.true_value) < x.tolerance < 1000 * epsilon


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_all_sides_are_fed_numbers_of_the_format(precision: str) -> None:
    """What the engine rounds away as it comes in is no error of PyTorch's, to be made twice."""
    dtype = getattr(torch, precision)
    seen = []

    class Watched(Vision):
        def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(feeds["pixel_values"])
            return super()._run(feeds)

    decoder = Tampered(load(dtype), unchanged)
    engine = OpenSide("engine", Watched(load(dtype)), decoder)
    check(engine, Precisions.both(precision), SCENARIOS[:1])
    fed = [seen[0], *decoder.fed]
    assert len(fed) == DECODE_STEPS + 2
    for values in fed:
        rounded = torch.from_numpy(values).to(dtype).to(torch.float32).numpy()
        assert np.array_equal(values.astype(np.float32), rounded)


def test_one_wrong_call_is_found_at_its_step() -> None:
    """The engine's first call is the first scenario's prefill; its decode steps follow."""
    for wrong in (0, 1, DECODE_STEPS):

        def tamper(call: int, logits: np.ndarray, wrong: int = wrong) -> np.ndarray:
            return logits + 1e-3 if call == wrong else logits

        result = judge(Precisions.both("float32"), tamper)
        failed = [(x.stage, x.step) for x in result.tensors if not x.passed]
        assert failed == [("one clip: decoder", wrong)]
        assert not result.passed


@pytest.mark.parametrize("scenario", ANSWERING, ids=lambda scenario: scenario.name)
def test_an_answer_is_the_engines_own(scenario: Scenario) -> None:
    """Fed the truth's features it computes right; with its own it says something else."""
    calls: list[int] = []

    def counted(call: int, logits: np.ndarray) -> np.ndarray:
        calls.append(call)
        return logits

    assert judge(Precisions.both("float32"), counted, [scenario]).passed

    def tamper(call: int, logits: np.ndarray) -> np.ndarray:
        # The answer takes as many calls as what is judged, and comes after it.
        return logits if call < len(calls) // 2 else np.roll(logits, 1, axis=-1)

    result = judge(Precisions.both("float32"), tamper, [scenario])
    assert all(x.passed for x in result.tensors)
    (answer,) = result.answers
    assert not answer.passed
    assert answer.first_difference == 0
    assert answer.margin > 2 * answer.tolerance


def test_frames_are_distinct_and_lengths_odd() -> None:
    """Alike frames would hide a mask or a position that is wrong."""
    assert [x.name for x in SCENARIOS] == [
        "one clip",
        "two clips and an image",
        "most frames, frame by frame",
        "end of the cache",
    ]
    for scenario in ANSWERING:
        frames = scenario.pixel_values.reshape(len(scenario.pixel_values), -1)
        correlations = np.corrcoef(frames) - np.eye(len(frames))
        assert np.abs(correlations).max() < 0.5
    assert SCENARIOS[2].chunk_tokens == CONFIG.tokens_per_frame


def test_long_scenarios_give_no_answer_where_memory_is_short() -> None:
    """The shortest come first; what was left out is said, and the rest is compared all the same."""
    precisions = Precisions.both("float32")
    engine = OpenSide(
        "engine", Vision(load(torch.float32)), TorchDecoderEngine(load(torch.float32))
    )
    shortest = min(ANSWERING, key=lambda x: x.length)
    with tempfile.TemporaryDirectory() as folder:
        judges = references(store(load(torch.float32), Path(folder)), precisions)
        limit = judges.truth.cache_bytes(shortest.length + DECODE_STEPS)
        result = check_parity(judges, engine, precisions, ANSWERING, answer_bytes=limit)
    assert result.passed
    assert [x.scenario for x in result.answers] == [shortest.name]
    assert len(result.notes) == len(ANSWERING) - 1
    assert "no greedy answer" in result.notes[0]
    assert {x.stage for x in result.tensors} >= {
        f"{x.name}: {stage}" for x in ANSWERING for stage in ("vision", "decoder")
    }
