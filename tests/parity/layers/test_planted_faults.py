# SPDX-License-Identifier: Apache-2.0
"""A fault in one layer is found in that layer, at the right places, and called by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tc_export.bundle import Profile
from tc_export.dtypes import DType
from tc_export.native.find import find_native_library
from tc_export.parity.layers.check_bundle import Judged, check_by_layer
from tc_export.parity.layers.culprit import spell_places
from tc_export.parity.layers.result import ByLayerResult, Culprit, worst_shares
from tc_export.targets import Precisions
from tests.exported import Exported, export_small
from tests.parity.layers import faulty
from tests.parity.layers.faulty import LAYER, Fault, plant, weight

PROFILE = Profile(max_frames=3, max_length=60)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_small(tmp_path_factory.mktemp("deep"), text={"num_hidden_layers": 3})


def check(
    exported: Exported, folder: Path, precision: str = "float32", native: Path | None = None
) -> ByLayerResult:
    return check_by_layer(
        Judged(
            folder=folder,
            checkpoint=exported.checkpoint,
            precisions=Precisions.both(precision),
            profile=PROFILE,
            native_library=native,
            threads=1,
        )
    )


def culprit_of(exported: Exported, tmp_path: Path, fault: Fault, **where: str) -> Culprit:
    found = check(exported, plant(exported, tmp_path, fault, **where)).culprit
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fault", "pattern", "tensor"),
    [
        (faulty.gamma_wrong, "temporal position", "queries after self_attn.dual_rope"),
        (faulty.positions_from_one, "position offset", "queries after self_attn.dual_rope"),
        (faulty.base_wrong, "rope base", "queries after self_attn.dual_rope"),
        (faulty.causal, "mask", "output of self_attn.block_causal_attention"),
        (faulty.scale_wrong, "attention scale", "output of self_attn.block_causal_attention"),
        (faulty.row_lost, "cache write", "keys in the cache"),
        (faulty.exchanged, "cache write", "keys into self_attn.block_causal_attention"),
        (faulty.epsilon_wrong, "norm epsilon", "input_layernorm"),
        (faulty.heads_swapped, "heads", "self_attn.q_proj"),
        (faulty.one_number, "weight", "mlp.up_proj"),
        (faulty.no_residual, "sum", "x + self_attn"),
        (faulty.overflows, "overflow", "silu(gate_proj) * up_proj"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_fault_is_found_and_named(
    deep: Exported, tmp_path: Path, fault: Fault, pattern: str, tensor: str
) -> None:
    found = culprit_of(deep, tmp_path, fault)
    assert (found.layer, found.pattern, found.tensor) == (LAYER, pattern, tensor), found.words
    graph = onnx.load(tmp_path / "graphs" / "decoder.onnx", load_external_data=False)
    (node,) = (x for x in graph.graph.node if x.name == found.node)
    assert f"decoder.layers.{LAYER}" in str(node.metadata_props)
    assert found.share > 10


def test_words_say_how_the_error_runs(deep: Exported, tmp_path: Path) -> None:
    gamma = deep.config.temporal.gamma
    words = culprit_of(deep, tmp_path, faulty.gamma_wrong).words
    assert "grows with the frame" in words
    assert f"T counts {1.01 * gamma:.3f} times, not {gamma:.3f}" in words


def test_a_mask_is_wrong_inside_frames_alone(deep: Exported, tmp_path: Path) -> None:
    result = check(deep, plant(deep, tmp_path, faulty.causal))
    shares = dict(zip(result.places, worst_shares(result.isolated)[LAYER], strict=True))
    wrong = {place for place, share in shares.items() if share is not None and share > 1}
    assert wrong
    assert all(place.startswith("frame ") for place in wrong)
    assert result.culprit is not None
    assert "causal" in result.culprit.words


def test_an_epsilon_names_the_node_that_adds_it(deep: Exported, tmp_path: Path) -> None:
    found = culprit_of(deep, tmp_path, faulty.epsilon_wrong)
    graph = onnx.load(tmp_path / "graphs" / "decoder.onnx", load_external_data=False)
    (node,) = (x for x in graph.graph.node if x.name == found.node)
    assert node.op_type == "Add"
    assert "0.001" in found.words


def test_the_right_graph_has_no_culprit(deep: Exported) -> None:
    result = check(deep, deep.folder)
    assert result.culprit is None
    assert result.passed
    for measured in (*result.isolated, *result.accumulated, *result.vision, *result.head):
        shares = [x for row in measured.shares for x in row if x is not None]
        assert shares
        assert max(shares) < 0.7, measured.quantity  # room, and not all of it
    # The tolerance is tight: a good part of it is used.
    assert max(x for row in worst_shares(result.isolated) for x in row if x is not None) > 0.02


def test_our_library_is_judged_too(deep: Exported, tmp_path: Path) -> None:
    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    assert check(deep, deep.folder, native=library.path).passed
    result = check(deep, plant(deep, tmp_path, faulty.causal), native=library.path)
    assert result.culprit is not None
    assert (result.culprit.layer, result.culprit.pattern) == (LAYER, "mask")


@pytest.mark.parametrize("mask", ["causal", "full_visual", "frame_block"])
def test_every_mask_can_be_judged(tmp_path: Path, mask: str) -> None:
    exported = export_small(
        tmp_path, text={"num_hidden_layers": 2}, temporal={"mask": mask, "gamma": 1.0}
    )
    assert check(exported, exported.folder).passed
    result = check(exported, plant(exported, tmp_path / "copy", faulty.gamma_wrong))
    assert result.culprit is not None
    assert (result.culprit.layer, result.culprit.pattern) == (LAYER, "temporal position")


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_a_small_fault_shows_through_a_short_format(tmp_path: Path, dtype: DType) -> None:
    """Gamma 1.01 is lost in the format's own noise, and shows where nothing is rounded."""
    exported = export_small(tmp_path, text={"num_hidden_layers": 2}, precision=dtype)
    result = check(exported, exported.folder, dtype)
    assert result.passed, result.culprit
    assert {x.arithmetic for x in result.isolated} == {dtype, "float32"}
    for index, fault in enumerate((faulty.gamma_wrong, faulty.epsilon_wrong)):
        copy = plant(exported, tmp_path / f"copy{index}", fault)
        culprit = check(exported, copy, dtype).culprit
        assert culprit is not None
        assert culprit.layer == LAYER
        assert culprit.pattern == ("temporal position", "norm epsilon")[index], culprit.words


def test_faults_outside_the_layers(deep: Exported, tmp_path: Path) -> None:
    def reverse(name: str) -> Fault:
        return lambda model, exported: weight(model, exported, name, lambda x: x[::-1])

    tower = "vision.vision_tower.layers.0.mlp.fc1"
    found = culprit_of(deep, tmp_path / "1", reverse(f"{tower}.bias"), graph="vision")
    assert (found.layer, found.tensor) == ("vision", tower.removeprefix("vision."))
    assert (found.place, found.pattern) == ("frame 1", "bias")
    found = culprit_of(deep, tmp_path / "2", reverse("decoder.lm_head.weight"))
    assert (found.layer, found.tensor, found.pattern) == ("head", "lm_head", "channel order")


def test_the_first_of_several_is_blamed(deep: Exported, tmp_path: Path) -> None:
    def everywhere(model: onnx.ModelProto, exported: Exported) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "gamma":
                    attribute.f *= 2

    found = culprit_of(deep, tmp_path, everywhere)
    assert found.layer == 0
    assert "all layers" in found.words


def test_an_isolated_layer_is_not_blamed_for_those_before(deep: Exported, tmp_path: Path) -> None:
    result = check(deep, plant(deep, tmp_path, faulty.heads_swapped))
    shares = worst_shares(result.isolated)
    accumulated = worst_shares(result.accumulated)
    assert max(x for x in shares[2] if x is not None) < 1
    assert max(x for x in accumulated[2] if x is not None) > 1
    assert max(x for x in accumulated[0] if x is not None) < 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([0, 1, 2, 3], "everywhere"),
        ([1], "at frame 1 alone"),
        ([0], "in text before alone"),
        ([2, 3], "from frame 2 on"),
        ([1, 2], "inside all frames"),
        ([0, 2], "at text before, frame 2"),
    ],
)
def test_places_in_words(wrong: list[int], words: str) -> None:
    places = ["text before", "frame 1", "frame 2", "text after"]
    assert spell_places(list(np.array(places)[wrong]), places) == words
