# SPDX-License-Identifier: Apache-2.0
"""Faults that only the last rows of a cache show, or only a batch of different prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import AttentionMask, TemporalConfig
from tc_export.contracts.graph_io import KV_END, POSITION_IDS, TEMPORAL_IDS
from tc_export.contracts.parts import even_parts
from tc_export.dtypes import DType, round_to
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.model.positions import Cursor, Text, lay_out
from tc_export.parity import random_cache
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.random_cache import RandomCache
from tc_export.parity.tensors.calls import CallMaker
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.report import failures
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import (
    DECODE_STEPS,
    END_OF_CACHE,
    Scenario,
    batched,
    end_of_cache,
    standard_scenarios,
)
from tc_export.parity.tensors.sides import JudgedSide, OpenSide
from tc_export.targets import Precisions
from tests.checkpoint.real_language import real_language_checkpoint
from tests.exported import Exported, export_small
from tests.model.small_models import random_model
from tests.parity.tensors.test_planted_faults import constant, insert_before

ROWS = 528
FLOAT32 = Precisions.both("float32")
SMALL = random_model(TemporalConfig(gamma=0.5)).config


def scenarios(exported: Exported) -> list[Scenario]:
    """One clip between text, the end of the cache, and another to make a batch with."""
    first, second, _, last = standard_scenarios(exported.config, max_frames=3, max_length=ROWS)
    return [first, second, last]


def open_side(folder: Path) -> OpenSide:
    paths = (folder / graph_path(name) for name in ("vision", "decoder"))
    return OpenSide("engine", *(OrtEngine(path, threads=1) for path in paths))


def check(exported: Exported, side: JudgedSide, precisions: Precisions = FLOAT32) -> ParityResult:
    judges = references(exported.checkpoint, precisions)
    return check_parity(judges, side, precisions, scenarios(exported))


def failed(result: ParityResult) -> dict[str, list[int]]:
    """The steps that failed, by stage."""
    stages: dict[str, list[int]] = {}
    for item in result.tensors:
        if not item.passed:
            stages.setdefault(item.stage, []).append(item.step)
    return stages


Fault = Callable[[onnx.ModelProto], None]


def capped(name: str, most: int, kind: type[np.generic]) -> Fault:
    def plant(model: onnx.ModelProto) -> None:
        limit = constant(model, "limit", np.array(most, dtype=kind))
        insert_before(model, name, [helper.make_node("Min", [name, limit], ["capped"])])

    return plant


def last_row_not_written(model: onnx.ModelProto) -> None:
    """A cache that takes itself to have a row less."""
    limit = constant(model, "limit", np.array(ROWS - 2, dtype=np.int64))
    for node in model.graph.node:
        if node.op_type == "TcBlockCausalAttention":
            node.input[:] = ["slots" if x == POSITION_IDS else x for x in node.input]
    model.graph.node.insert(0, helper.make_node("Min", [POSITION_IDS, limit], ["slots"]))


def first_sequence_for_all(name: str) -> Fault:
    """What is said of row 0 is taken for every sequence."""

    def plant(model: onnx.ModelProto) -> None:
        for bound, value in (("zero", 0), ("one", 1)):
            constant(model, bound, np.array([value], dtype=np.int64))
        nodes = [
            helper.make_node("Shape", [name], ["whole"]),
            helper.make_node("Slice", [name, "zero", "one"], ["row_0"]),
            helper.make_node("Expand", ["row_0", "whole"], ["of_row_0"]),
        ]
        insert_before(model, name, nodes)

    return plant


def planted(exported: Exported, folder: Path, fault: Fault) -> Path:
    copied = exported.copy(folder)
    path = copied / graph_path("decoder")
    model = onnx.load(path, load_external_data=False)
    fault(model)
    onnx.save(model, path)
    return copied


AT_THE_END = {
    "kv_end capped": capped(KV_END, 100, np.int32),
    "kv_end capped a row early": capped(KV_END, ROWS - 1, np.int32),
    "T capped": capped(TEMPORAL_IDS, 60, np.int64),
    "last row not written": last_row_not_written,
}


@pytest.mark.parametrize("name", AT_THE_END)
def test_a_fault_at_the_end_of_the_cache_is_caught_there(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    result = check(exported, open_side(planted(exported, tmp_path, AT_THE_END[name])))
    steps = failed(result)
    assert list(steps) == [f"{END_OF_CACHE}: decoder"]
    if "row" in name:  # the last row alone: the last step
        assert steps[f"{END_OF_CACHE}: decoder"] == [max(x.step for x in result.tensors)]


@pytest.mark.parametrize("tensor", [TEMPORAL_IDS, POSITION_IDS, KV_END])
def test_one_sequence_taken_for_all_is_caught_in_the_batch(
    exported: Exported, tmp_path: Path, tensor: str
) -> None:
    result = check(exported, open_side(planted(exported, tmp_path, first_sequence_for_all(tensor))))
    assert not result.passed
    assert all("in a batch" in stage for stage in failed(result))


@pytest.mark.parametrize(
    ("precision", "mask"),
    [
        *(("float32", mask) for mask in AttentionMask),
        ("float16", AttentionMask.FRAME_BLOCK_CAUSAL),
        ("bfloat16", AttentionMask.FRAME_BLOCK),
    ],
)
def test_right_graphs_pass_whole_and_in_parts(
    tmp_path: Path, precision: str, mask: AttentionMask
) -> None:
    temporal = {"mask": mask.value}
    exported = export_small(tmp_path, precision=DType(precision), temporal=temporal)
    precisions = Precisions.both(precision)
    layers = exported.config.text.num_hidden_layers
    for parts in (1, layers):
        side = GraphsInTurn(tmp_path, exported.config, precisions, even_parts(layers, parts))
        result = check(exported, side, precisions)
        assert result.passed, failures(result)
        assert not result.notes
    stages = {x.stage for x in result.tensors}
    assert len([x for x in stages if "in a batch" in x]) == 2
    # Each runs to its last token there too.
    for stage in stages:
        if "in a batch" in stage:
            alone = stage.replace(", in a batch", "")
            assert [x.step for x in result.tensors if x.stage == stage] == [
                x.step for x in result.tensors if x.stage == alone
            ]


def test_an_engine_for_one_sequence_is_not_given_a_batch(exported: Exported) -> None:
    side = open_side(exported.folder)
    side.takes_batches = False
    result = check(exported, side)
    assert result.passed
    assert result.notes == (
        "no scenarios were run as a batch: the engine takes one sequence at a time",
    )
    assert not any("in a batch" in x.stage for x in result.tensors)


@pytest.mark.parametrize("length", [18, 22, 100, 528])
def test_the_last_rows_are_visited_whatever_the_profile(length: int) -> None:
    scenario = standard_scenarios(SMALL, max_frames=3, max_length=length)[-1]
    assert scenario.name == END_OF_CACHE
    segments = [*scenario.segments, Text(DECODE_STEPS)]
    layout, _ = lay_out(segments, SMALL.temporal, scenario.start)
    assert layout.position_ids[-1] == length - 1
    assert layout.kv_end[-1] == length
    assert len(set(layout.kv_end.tolist())) > DECODE_STEPS
    # As far as text alone gets, but for what its one frame has fewer.
    assert layout.temporal_ids[-1] >= length - SMALL.tokens_per_frame
    assert len(set(layout.temporal_ids.tolist())) >= 18
    assert scenario.length + DECODE_STEPS + scenario.rows_before == length


def test_too_small_a_profile_has_no_end_and_a_huge_one_no_frame_there() -> None:
    random = np.random.default_rng(0)
    assert end_of_cache(SMALL, 17, random) == []
    (scenario,) = end_of_cache(SMALL, 1 << 20, random)
    assert scenario.segments == (Text(10),)
    assert len(scenario.pixel_values) == 0


def test_a_scenario_without_a_frame_is_compared_all_the_same(exported: Exported) -> None:
    (scenario,) = end_of_cache(exported.config, 18, np.random.default_rng(0))
    assert len(scenario.pixel_values) == 0
    later = replace(scenario, start=Cursor(position=40, temporal=40))
    others = scenarios(exported)[:1]
    judges = references(exported.checkpoint, FLOAT32)
    result = check_parity(judges, open_side(exported.folder), FLOAT32, [later, *others])
    assert result.passed, failures(result)
    assert {x.scenario for x in result.answers} == {others[0].name}


def test_a_batch_is_of_two_that_differ() -> None:
    found = standard_scenarios(SMALL, max_frames=3, max_length=ROWS)
    members = [found[index] for index in batched(found)]
    assert len({x.length for x in members}) == 2
    assert not any(x.rows_before for x in members)
    assert batched(found[-1:]) == ()
    assert batched([found[-1], found[0]]) == (0, 1)


def embedded(exported: Exported, tokens: int) -> np.ndarray:
    random = np.random.default_rng(3)
    return random.standard_normal((tokens, exported.config.text.hidden_size)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 5, 16, 200])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_random_rows_are_the_same_for_every_side(
    exported: Exported, rows: int, dtype: DType
) -> None:
    config = exported.config
    computed = references(exported.checkpoint, FLOAT32).truth.caches(embedded(exported, 16))
    cache = RandomCache(config=config, computed=computed, dtype=dtype, rows=rows)
    again = RandomCache(config=config, computed=computed, dtype=dtype, rows=rows)
    for layer in range(config.text.num_hidden_layers):
        for index, part in enumerate(("key", "value")):
            values = cache.draw(layer, part)
            assert values.shape == (config.text.num_key_value_heads, rows, config.text.head_dim)
            np.testing.assert_array_equal(values, round_to(values, dtype))
            np.testing.assert_array_equal(values, again.draw(layer, part))
            first = computed[layer][index][:, :rows]
            np.testing.assert_array_equal(values[:, :16], round_to(first, dtype))
            assert len(np.unique(values[0], axis=0)) == rows


def test_random_rows_are_those_of_tokens_that_stand_there(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first layer a key depends on its token and its place alone: so it can be computed."""
    monkeypatch.setattr(random_cache, "NOISE", 0.0)
    truth = references(exported.checkpoint, FLOAT32).truth
    tokens, rows = embedded(exported, 16), 90
    computed = truth.caches(tokens)
    cache = RandomCache(config=exported.config, computed=computed, dtype=DType.FLOAT32, rows=rows)
    values = cache.draw(0, "value")[0]
    of_tokens = computed[0][1][0].astype(np.float32)
    sources = [int(np.flatnonzero((of_tokens == value).all(-1))[0]) for value in values]
    assert sources[:16] == list(range(16))
    assert set(sources[16:]) == set(range(1, 16))  # the first token is one of a kind
    expected, _ = truth.caches(tokens[sources])[0]
    found = cache.draw(0, "key")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())
    turned_too_little = truth.caches(tokens[[*sources[:16], *sources[15:-1]]])[0][0]
    assert abs(found - turned_too_little).max() > 0.1 * abs(expected).max()


def test_random_rows_are_no_worse_to_compute_with_than_real_ones() -> None:
    """What float16 rounds off there is of the size of what it rounds off elsewhere.

    Real weights: in random ones no token matters more than others, and any rows would do.
    """
    checkpoint = open_checkpoint(real_language_checkpoint())
    config, precisions = checkpoint.config.model, Precisions.both("float16")
    judges = references(checkpoint, precisions)
    (end,) = end_of_cache(config, 600, np.random.default_rng(0))
    maker = CallMaker(judges.truth, DType.FLOAT16, np.dtype(np.float32))
    features = judges.truth.features([end.pixel_values])[0]
    sequences = [
        maker.judged(x, maker.prompt(x, features)).sequence
        for x in (end, replace(end, start=Cursor()))
    ]
    truth = judges.truth.logits(sequences)
    found = judges.baseline.decoder.logits(sequences)
    errors = [
        float(np.median(np.abs(one.astype(np.float64) - other).max(-1)))
        for one, other in zip(found, truth, strict=True)
    ]
    assert errors[0] < 3 * errors[1]


def test_a_sequence_after_random_rows_is_one_after_real_ones(exported: Exported) -> None:
    """The rows of a real prefix, handed over as those drawn, give what the whole sequence gives."""
    truth = references(exported.checkpoint, FLOAT32).truth
    scenario = scenarios(exported)[0]
    calls = CallMaker(truth, DType.FLOAT32, np.dtype(np.float32))
    (features,) = truth.features([scenario.pixel_values])
    judged = calls.judged(scenario, calls.prompt(scenario, features))
    whole, cut = judged.sequence, 5
    decoder = OrtEngine(exported.folder / graph_path("decoder"), threads=1)
    cache = decoder.new_cache(cut)
    feed = {name: values[:, :cut] for name, values in judged.feeds[0].items()}
    decoder.run(feed, cache)
    cached = {name: buffer.numpy()[0] for name, buffer in cache.buffers.items()}

    class Kept(RandomCache):
        def draw(self, layer: int, part: str) -> np.ndarray:
            return cached[f"{layer}.{part}"]

    rest = replace(
        whole,
        embeds=whole.embeds[cut:],
        layout=whole.layout.tokens(cut, whole.layout.length),
        logits_indices=whole.logits_indices[cut:] - cut,
        past=Kept(config=exported.config, computed=(), dtype=DType.FLOAT32, rows=cut),
    )
    (expected,), (found,) = truth.logits([whole]), truth.logits([rest])
    np.testing.assert_allclose(found, expected[cut:], rtol=0, atol=2e-6 * abs(expected).max())
