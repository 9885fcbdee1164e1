# SPDX-License-Identifier: Apache-2.0
"""In how many parts a decoder is built: as few as memory allows, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tc_export.config import ModelConfig
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.plan import parts as module
from tc_export.plan.build_cost import build_cost
from tc_export.plan.host import HostMemory
from tc_export.plan.memory import Workload, memory_by_part
from tc_export.plan.parameters import decoder_count
from tc_export.plan.parts import builder_bytes, choose_parts, largest_part
from tc_export.plan.planner import make_plan
from tc_export.plan.report import plan_as_json
from tc_export.plan.roofline import predict_times
from tc_export.recipes import load_recipe
from tc_export.targets import Precision, Target, load_target
from tests.plan.configs import llava_7b, model_configs
from tests.plan.test_planner import precisions_of

FLOAT16 = Precision.FLOAT16
RTX = load_target("rtx4090")


@given(model_configs(), st.floats(0.1, 60))
@settings(max_examples=60, deadline=None)
def test_one_part_fewer_would_not_fit(config: ModelConfig, gigabytes: float) -> None:
    limit = round(gigabytes * 1e9)
    layers = config.text.num_hidden_layers
    if builder_bytes(largest_part(config, layers, FLOAT16)) > limit:
        with pytest.raises(UnsupportedEnvironment, match="a part of one layer"):
            choose_parts(config, RTX, FLOAT16, memory_bytes=limit)
        return
    chosen = choose_parts(config, RTX, FLOAT16, memory_bytes=limit)
    assert builder_bytes(largest_part(config, chosen, FLOAT16)) <= limit
    assert chosen == 1 or builder_bytes(largest_part(config, chosen - 1, FLOAT16)) > limit


@given(model_configs())
def test_parts_have_all_weights(config: ModelConfig) -> None:
    layers = config.text.num_hidden_layers
    matrices = decoder_count(config).matrices
    assert largest_part(config, 1, FLOAT16) == 2 * matrices
    for parts in range(1, layers + 1):
        assert 2 * matrices <= parts * largest_part(config, parts, FLOAT16)


def test_7b_in_float16_is_built_in_three_parts_on_a_machine_of_24_gb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = HostMemory(total=25_300_000_000, available=20_000_000_000)
    monkeypatch.setattr(module, "host_memory", lambda: memory)
    assert choose_parts(llava_7b(), RTX, FLOAT16) == 3
    assert choose_parts(llava_7b(), RTX, FLOAT16, recipe=load_recipe("int4-weights")) == 1
    cost = build_cost(llava_7b(), RTX, precisions_of(RTX), 3)
    assert cost.peak_by_step["engine"] < 16e9


def test_parts_do_not_change_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another number of parts would build everything again."""
    for free in (1e9, 20e9):
        memory = HostMemory(total=25_300_000_000, available=round(free))
        monkeypatch.setattr(module, "host_memory", lambda memory=memory: memory)
        assert choose_parts(llava_7b(), RTX, FLOAT16) == 3


@pytest.mark.parametrize(
    ("target", "parts"),
    [("orin", 1), ("orin-32gb", 2), ("orin-nx", 3), ("h100", 1), ("l4", 1), ("cpu", 1)],
)
def test_a_device_builds_within_its_own_memory(target: str, parts: int) -> None:
    """A card's host is not known; --memory is of this machine, and says nothing of the device."""
    device = load_target(target)
    assert choose_parts(llava_7b(), device, FLOAT16) == parts
    assert choose_parts(llava_7b(), device, FLOAT16, memory_bytes=1) == parts


@pytest.mark.parametrize(
    ("target", "asked", "said"),
    [
        ("cpu", 2, "cpu runs the graphs themselves"),
        ("orin", 33, "the decoder has 32 layers"),
        ("rtx4090", 33, "the decoder has 32 layers"),
        ("rtx4090", 0, "the decoder has 32 layers"),
    ],
)
def test_parts_that_cannot_be(target: str, asked: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_parts(llava_7b(), load_target(target), FLOAT16, asked)


@pytest.mark.parametrize("target", ["cpu", "orin", "rtx4090"])
def test_one_part_can_be_asked_for(target: str) -> None:
    assert choose_parts(llava_7b(), load_target(target), FLOAT16, 1, memory_bytes=1) == 1


@pytest.mark.parametrize("target", ["orin", "rtx4090"])
def test_what_parts_cost_is_said_and_labelled(target: str) -> None:
    device = load_target(target)
    whole, cut = (
        make_plan(llava_7b(), device, precisions_of(device), 8, parts=parts) for parts in (1, 4)
    )
    assert whole.times is not None
    assert cut.times is not None
    assert whole.times.parts_s == 0
    assert cut.times.parts_s >= 3 * 6 * 4e-6
    slower = 1 / cut.times.decode_tokens_per_s - 1 / whole.times.decode_tokens_per_s
    assert slower == pytest.approx(cut.times.parts_s)
    named = {figure.name: figure for figure in cut.times.figures}
    (doubt,) = named["decoder in 4 parts, of a decode step"].doubts
    assert doubt.mark == "assumed"
    assert not any("parts" in figure.name for figure in whole.times.figures)
    document = plan_as_json(cut)
    assert document["build"]["decoder_parts"] == 4
    assert document["predicted"]["decoder_parts_s"] == cut.times.parts_s


def test_each_part_keeps_activations_of_its_own() -> None:
    device = load_target("orin")
    asked = Workload(frames=8, length=2000, precisions=precisions_of(device))
    whole = memory_by_part(llava_7b(), device, asked)
    cut = memory_by_part(llava_7b(), device, replace(asked, parts=3))
    embeds = 4 * 2000 * llava_7b().text.hidden_size
    assert cut["decoder_activations"] - embeds == 3 * (whole["decoder_activations"] - embeds)
    for same in ("decoder_weights", "kv_cache", "vision_weights"):
        assert cut[same] == whole[same]


def test_a_suggested_device_has_parts_of_its_own() -> None:
    small = load_target("orin-nx")
    plan = make_plan(llava_7b(), small, precisions_of(small), 28)
    assert plan.workload.parts > 1
    larger = next(x for x in plan.suggestions if x.change == "--target orin")
    there = load_target("orin")
    applied = make_plan(llava_7b(), there, precisions_of(there), 28)
    assert applied.workload.parts == 1
    assert larger.total_bytes == applied.total_bytes


def test_a_plan_is_made_where_nothing_could_be_built() -> None:
    plan = make_plan(llava_7b(), RTX, precisions_of(RTX), 8, memory_bytes=1)
    assert plan.workload.parts == llava_7b().text.num_hidden_layers


def test_parts_are_predicted_for_any_target() -> None:
    """Also where the target states no rates."""
    bare: Target = RTX.model_copy(update={"rates": RTX.rates.model_copy(update={"float16": None})})
    asked = Workload(frames=8, length=2000, precisions=precisions_of(RTX), parts=2)
    assert predict_times(llava_7b(), bare, asked) is None
