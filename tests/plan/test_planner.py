# SPDX-License-Identifier: Apache-2.0
"""Fits or not, how many frames, how fast, and what would help: against brute force and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tc_export.checkpoint.hf_config import read_config
from tc_export.config import ModelConfig
from tc_export.demo_model.config import tiny_model
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.plan import build_memory
from tc_export.plan.build_memory import least_bytes
from tc_export.plan.chart import draw_chart
from tc_export.plan.host import host_memory
from tc_export.plan.memory import Workload, memory_by_part
from tc_export.plan.planner import FramesAsked, make_plan, most_frames, profile_length
from tc_export.plan.report import plan_as_json
from tc_export.plan.roofline import RATE_SHARE
from tc_export.recipes import list_recipes, load_recipe
from tc_export.targets import Precision, Precisions, Target, load_target, read_precisions
from tests.plan.configs import model_configs, vicuna
from tests.repository import DEMO_CHECKPOINT, REPOSITORY

PARTS = {
    "vision_weights",
    "decoder_weights",
    "kv_cache",
    "vision_activations",
    "decoder_activations",
    "plugin_workspace",
    "embedding",
    "runtime",
    "os_reserve",
}


def precisions_of(target: Target) -> Precisions:
    return read_precisions(None, target)


def total(config: ModelConfig, target: Target, frames: int, max_length: int | None) -> int:
    length = profile_length(config, frames, max_length)
    asked = Workload(frames=frames, length=length, precisions=precisions_of(target))
    return sum(memory_by_part(config, target, asked).values())


@settings(deadline=None, max_examples=60)
@given(
    model_configs(),
    st.sampled_from(["cpu", "orin-nano", "l4"]),
    st.none() | st.integers(2, 5000),
    st.integers(0, 4_000_000),
)
def test_the_most_frames_are_the_largest_that_fit(
    config: ModelConfig, name: str, max_length: int | None, room: int
) -> None:
    target = load_target(name)
    context = config.text.max_position_embeddings
    max_length = None if max_length is None else min(max_length, context)
    text = 1  # as little as a question could have
    possible = ((max_length or context) - text) // config.tokens_per_frame
    counts = range(1, min(possible, 400) + 1)
    totals = [total(config, target, frames, max_length) for frames in counts]
    limit = min(totals, default=0) + room
    asked = Workload(frames=1, length=1, precisions=precisions_of(target))
    most, limited_by = most_frames(FramesAsked(config, target, asked, max_length, text), limit)
    fitting = [frames for frames, used in zip(counts, totals, strict=True) if used <= limit]
    assert min(most, 400) == max(fitting, default=0)
    assert limited_by == ("context" if most == possible else "memory")


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return vicuna(tmp_path)


def test_a_7b_fits_an_orin_and_no_nano(config: ModelConfig) -> None:
    orin, nano = load_target("orin"), load_target("orin-nano")
    assert make_plan(config, orin, precisions_of(orin), 16).fits
    plan = make_plan(config, nano, precisions_of(nano), 16)
    assert not plan.fits
    assert plan.max_frames == 0


def test_memory_of_a_7b_by_hand(config: ModelConfig) -> None:
    target = load_target("orin")
    plan = make_plan(config, target, precisions_of(target), 16)
    assert plan.workload.length == 16 * 144 + 512
    parts = plan.bytes_by_part
    assert parts.keys() == PARTS
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert parts["decoder_weights"] == 2 * (32 * layer + 32064 * 4096 + 4096)
    assert parts["kv_cache"] == 2816 * 512 * 1024
    assert parts["os_reserve"] == 2_500_000_000
    assert plan.limit_bytes == 64_000_000_000
    assert plan.total_bytes == sum(parts.values())


def test_times_of_a_7b_by_hand(config: ModelConfig) -> None:
    """Decoding moves every weight and the whole cache once a token, at 70 % of 205 GB/s."""
    target = load_target("orin")
    plan = make_plan(config, target, precisions_of(target), 16)
    assert plan.times is not None
    parts = plan.bytes_by_part
    moved = parts["decoder_weights"] + parts["kv_cache"]
    assert plan.times.decode_tokens_per_s == pytest.approx(0.7 * 205e9 / moved)
    assert plan.times.bounds == {"vision": "rate", "prefill": "rate", "decode": "bandwidth"}
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    pairs = 2816 * 2817 // 2 + 16 * 144 * 143 // 2
    operations = 2 * 2816 * 32 * layer + 4 * 32 * 4096 * pairs + 2 * 3 * 32064 * 4096
    assert plan.times.prefill_s == pytest.approx(operations / (0.5 * 43e12))
    # CLIP-L without its last layer: 23 layers over 577 patches, and the projector.
    matrices = 23 * 12 * 1024**2 + 3 * 14**2 * 1024 + 1024 * 4096 + 4096**2
    operations = 16 * (2 * 577 * matrices + 4 * 23 * 1024 * 577**2)
    assert plan.times.vision_s == pytest.approx(operations / (0.5 * 43e12))
    assert plan.times.time_to_first_token_s == plan.times.vision_s + plan.times.prefill_s


def test_figures_carry_their_doubts(config: ModelConfig) -> None:
    target = load_target("l4")
    report = plan_as_json(make_plan(config, target, precisions_of(target), 4))
    figures = {figure["name"]: figure for figure in report["predicted"]["figures"]}
    assert figures["float16 rate"]["value"] == 121
    assert [d["mark"] for d in figures["float16 rate"]["doubts"]] == ["uncertain"]
    assert figures["memory bandwidth"]["doubts"] == []
    assert [d["mark"] for d in figures["share of the rate"]["doubts"]] == ["assumed"]
    assert "memory.os_reserve_gb" in {doubt["field"] for doubt in report["doubts"]}


def test_the_cpu_has_no_times_unless_its_figures_are_given(
    config: ModelConfig, tmp_path: Path
) -> None:
    cpu = load_target("cpu")
    assert make_plan(config, cpu, precisions_of(cpu), 1).times is None
    own = tmp_path / "mine.toml"
    shipped = REPOSITORY / "engines/targets/cpu.toml"
    text = shipped.read_text().replace('"cpu"', '"mine"')
    text = text.replace("[memory]", "[memory]\ntotal_gb = 64\nbandwidth_gb_s = 40")
    own.write_text(text + "\n[rates]\nfloat32 = 0.4\n")
    mine = load_target(str(own))
    plan = make_plan(config, mine, precisions_of(mine), 1)
    assert plan.times is not None
    assert plan.limit_bytes == 64_000_000_000


def test_only_what_a_build_can_do_is_suggested(config: ModelConfig) -> None:
    """Each one, applied, really fits; nothing of formats that no build makes."""
    target = load_target("orin-nx")
    plan = make_plan(config, target, precisions_of(target), 28)
    assert not plan.fits
    found = {suggestion.change: suggestion for suggestion in plan.suggestions}
    assert "fewer frames" not in found  # 13.2 GB of weights: none fits
    assert list(found) == [
        *(
            f"--quantize {recipe.name}"
            for recipe in list_recipes()
            if recipe.formats <= {"int4", "int8"}
        ),
        "--target orin-32gb",
        "--target orin",
        "--target thor-t4000",
        "--target thor",
    ]
    for change, suggestion in found.items():
        flag, _, name = change.partition(" ")
        device = load_target(name) if flag == "--target" else target
        recipe = load_recipe(name) if flag == "--quantize" else None
        applied = make_plan(config, device, precisions_of(device), 28, recipe=recipe)
        assert suggestion.fits is applied.fits is True
        assert suggestion.max_frames == applied.max_frames
        assert suggestion.total_bytes == applied.total_bytes


def test_four_bits_of_a_7b_by_hand(config: ModelConfig) -> None:
    """The layers' matrices in 4.25 bits; head, norms, cache and activations as they were."""
    target = load_target("orin-nano")
    whole = make_plan(config, target, precisions_of(target), 4)
    plan = make_plan(config, target, precisions_of(target), 4, recipe=load_recipe("int4-weights"))
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 32 * 2 * 4096 + 32064 * 4096 + 4096
    assert plan.bytes_by_part["decoder_weights"] == matrices * 4.25 / 8 + 2 * rest
    assert plan.workload.parts < whole.workload.parts  # each has activations of its own
    same = PARTS - {"decoder_weights", "decoder_activations", "plugin_workspace"}
    assert {part: plan.bytes_by_part[part] for part in same} == {
        part: whole.bytes_by_part[part] for part in same
    }
    assert plan.fits
    assert not whole.fits
    assert plan.times is not None
    assert whole.times is not None
    assert plan.times.decode_tokens_per_s > 2 * whole.times.decode_tokens_per_s
    assert plan.suggestions == ()
    assert plan_as_json(plan)["recipe"] == "int4-weights"


def test_products_in_eight_bits_are_credited_with_their_rate(config: ModelConfig) -> None:
    """Prefill of a long prompt: the matrices' operations at the device's int8 rate, attention and
    the head at float16's."""
    target = load_target("orin")
    whole = make_plan(config, target, precisions_of(target), 12)
    asked = load_recipe("int8-smooth")
    plan = make_plan(config, target, precisions_of(target), 12, recipe=asked)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    length = plan.workload.length
    float16, int8 = target.rates.float16, target.rates.int8
    assert float16 is not None
    assert int8 is not None
    assert plan.times is not None
    assert whole.times is not None
    assert plan.times.bounds["prefill"] == whole.times.bounds["prefill"] == "rate"
    saved = 2 * matrices * length * (1 / float16 - 1 / int8) / 1e12 / RATE_SHARE
    assert plan.times.prefill_s == pytest.approx(whole.times.prefill_s - saved)
    scales = 32 * (4 * 4096 + 2 * 11008 + 4096) * 2
    rest = 32 * 2 * 4096 + 32064 * 4096 + 4096
    assert plan.bytes_by_part["decoder_weights"] == matrices + scales + 2 * rest


def test_a_budget_of_bits_is_planned_as_it_is(config: ModelConfig) -> None:
    target = load_target("orin")
    plan = make_plan(config, target, precisions_of(target), 4, recipe=load_recipe("mixed"))
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 32 * 2 * 4096 + 32064 * 4096 + 4096
    assert plan.bytes_by_part["decoder_weights"] == matrices * 5.5 / 8 + 2 * rest


def test_a_length_that_is_longer_than_needed_is_named(config: ModelConfig) -> None:
    target = load_target("orin-nx").model_copy(
        update={"memory": load_target("orin-nx").memory.model_copy(update={"total_gb": 17.5})}
    )
    plan = make_plan(config, target, precisions_of(target), 2, 4096)
    assert not plan.fits
    shorter = next(x for x in plan.suggestions if "--max-length" in x.change)
    assert shorter.fits
    assert make_plan(config, target, precisions_of(target), 2).total_bytes == shorter.total_bytes


@pytest.mark.parametrize("text_tokens", [1, 192, 600])
def test_the_most_frames_leave_room_for_question_and_answer(
    config: ModelConfig, text_tokens: int
) -> None:
    target = load_target("h100")
    plan = make_plan(config, target, precisions_of(target), 4, text_tokens=text_tokens)
    context = config.text.max_position_embeddings
    assert plan.limited_by == "context"
    left = context - plan.max_frames * config.tokens_per_frame
    assert text_tokens <= left < text_tokens + config.tokens_per_frame
    crowded = make_plan(config, target, precisions_of(target), 28, text_tokens=text_tokens)
    assert crowded.text_room == 64


def test_no_step_is_faster_than_its_launches(tmp_path: Path) -> None:
    """A tiny model on a huge device: its kernels must still be launched one by one."""
    small = tiny_model(100)
    target = load_target("h100")
    times = make_plan(small, target, precisions_of(target), 8).times
    assert times is not None
    assert set(times.bounds.values()) == {"launches"}
    layers = small.text.num_hidden_layers
    assert times.decode_tokens_per_s < 1 / (layers * 10 * 1e-6)
    assert times.vision_s > small.vision.layers_used * 10 * 1e-6


def test_fewer_frames_are_suggested_where_they_fit(config: ModelConfig) -> None:
    target = load_target("orin-nx").model_copy(
        update={"memory": load_target("orin-nx").memory.model_copy(update={"total_gb": 18.0})}
    )
    plan = make_plan(config, target, precisions_of(target), 28)
    found = {suggestion.change: suggestion for suggestion in plan.suggestions}
    assert 0 < plan.max_frames < 28
    fewer = found["fewer frames"]
    assert (fewer.max_frames, fewer.fits) == (plan.max_frames, False)
    one_more = make_plan(config, target, precisions_of(target), plan.max_frames + 1)
    assert fewer.total_bytes <= plan.limit_bytes < one_more.total_bytes
    assert make_plan(config, target, precisions_of(target), plan.max_frames).fits


def test_what_fits_needs_no_suggestion(config: ModelConfig) -> None:
    target = load_target("h100")
    assert make_plan(config, target, precisions_of(target), 16).suggestions == ()


def test_the_build_of_an_rtx_engine_is_predicted_from_measured_builds(config: ModelConfig) -> None:
    rtx, orin = (
        make_plan(config, target, precisions_of(target), 4, parts=1)
        for target in (load_target("rtx4090"), load_target("orin"))
    )
    weights = rtx.bytes_by_part["decoder_weights"]
    assert rtx.build.peak_by_step["engine"] == pytest.approx(0.5e9 + 3.05 * weights, rel=1e-3)
    assert "engine" not in orin.build.peak_by_step  # it is built on the device
    least = least_bytes(config, precisions_of(load_target("orin")))
    assert least < weights  # one layer in float64, and no more
    assert least <= orin.build.peak_by_step["parity"]


def test_json_is_json(config: ModelConfig) -> None:
    target = load_target("orin-nano")
    report = json.loads(
        json.dumps(plan_as_json(make_plan(config, target, precisions_of(target), 2)))
    )
    assert set(report["bytes"]) == PARTS
    assert report["fits"] is False
    assert report["suggestions"]


@pytest.mark.parametrize(
    ("frames", "length", "words"),
    [
        (16, 9000, "context of 4096"),
        (16, 2304, "2304 tokens are all"),
        (29, None, "29 frames of 144"),
    ],
)
def test_impossible_profiles(
    config: ModelConfig, frames: int, length: int | None, words: str
) -> None:
    target = load_target("orin")
    with pytest.raises(UsageError, match=words):
        make_plan(config, target, precisions_of(target), frames, length)


def test_the_chart_is_a_picture(config: ModelConfig, tmp_path: Path) -> None:
    target = load_target("orin-nx")
    plan = make_plan(config, target, precisions_of(target), 16)
    draw_chart(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="cannot be written"):
        draw_chart(plan, tmp_path / "none" / "plan.png")


class TestHostMemory:
    def meminfo(self, folder: Path, text: str) -> Any:
        (folder / "meminfo").write_text(text)
        return folder / "meminfo"

    def test_reads_what_linux_says(self, tmp_path: Path) -> None:
        file = self.meminfo(tmp_path, "MemTotal: 1000 kB\nMemAvailable: 300 kB\nHugePages: 0\n")
        found = host_memory(file, [tmp_path / "none"])
        assert (found.total, found.available) == (1_024_000, 307_200)

    @pytest.mark.parametrize(
        ("limit", "total"), [("500000", 500_000), ("max", 1_024_000), ("9" * 18, 1_024_000)]
    )
    def test_a_container_may_have_less(self, tmp_path: Path, limit: str, total: int) -> None:
        file = self.meminfo(tmp_path, "MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
        (tmp_path / "limit").write_text(limit)
        found = host_memory(file, [tmp_path / "limit"])
        assert found.total == total
        assert found.available == min(total, 921_600)

    @pytest.mark.parametrize("text", ["", "MemTotal: many kB\nMemAvailable: 1 kB\n"])
    def test_a_system_that_does_not_say(self, tmp_path: Path, text: str) -> None:
        file = self.meminfo(tmp_path, text)
        for path in (file, tmp_path / "none"):
            with pytest.raises(UnsupportedEnvironment, match="does not say"):
                host_memory(path, [])


# Layers beside the head, and the peak in GB: measured, as docs/adding-a-target.md says.
OPENED_LAST_PARTS = [(1, 2.65), (2, 3.86), (4, 6.27)]


@pytest.mark.parametrize(("layers", "peak_gb"), OPENED_LAST_PARTS)
def test_opening_a_part_is_predicted_within_15_percent(
    config: ModelConfig, layers: int, peak_gb: float
) -> None:
    predicted = build_memory.opened_part_bytes(config, Precision.FLOAT16, layers)
    assert predicted == pytest.approx(peak_gb * 1e9, rel=0.15)


def test_parts_follow_from_the_memory(config: ModelConfig) -> None:
    precisions = Precisions.both("float16")
    least = build_memory.least_bytes(config, precisions)
    for memory in (least, 4_000_000_000, 8_000_000_000, 100_000_000_000):
        limits = build_memory.memory_limits(config, precisions, memory)
        assert [x for part in limits.parts for x in part.layers] == list(range(32))
        assert limits.peak_bytes <= memory
    with pytest.raises(UnsupportedEnvironment, match=r"3\.1 GB of memory for one layer"):
        build_memory.memory_limits(config, precisions, least - 1)


def test_a_small_model_is_not_cut() -> None:
    limits = build_memory.memory_limits(tiny_model(100), Precisions.both("float16"), 10**9)
    assert len(limits.parts) == 1


def test_the_demo_models_build_is_predicted_within_15_percent() -> None:
    """`build --target cpu` with parity peaked at 0.57 GB; no allowance for caches is counted."""
    config = read_config(DEMO_CHECKPOINT).model
    limits = build_memory.memory_limits(config, Precisions.both("float32"), 16_000_000_000)
    assert limits.peak_bytes == pytest.approx(0.57e9, rel=0.15)


def test_a_longer_cache_takes_more_to_compare(config: ModelConfig) -> None:
    """A comparison goes to the end of it, with one layer in float64."""
    precisions = Precisions.both("float16")
    least = [build_memory.least_bytes(config, precisions, rows) for rows in (0, 4096, 8192)]
    # 32 heads of 128 channels, before and after; 144 tokens see them in 32 heads.
    a_row = 8 * (4 * 4096 + 144 * 32)
    assert least[0] < least[1]  # without a cache, opening a part takes most
    assert least[2] - least[1] == 4096 * a_row
    for rows in (4096, 8192):
        limits = build_memory.memory_limits(config, precisions, 5_000_000_000, rows)
        assert limits.peak_bytes <= 5_000_000_000
        with pytest.raises(UnsupportedEnvironment, match="for one layer at a time"):
            build_memory.memory_limits(config, precisions, least[0], rows)
