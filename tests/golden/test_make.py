# SPDX-License-Identifier: Apache-2.0
"""Golden data: fits the engines, shows the mask and the positions, and survives being written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tc_export.bundle.layout import tensorrt_graph_path
from tc_export.config import AttentionMask, TemporalConfig
from tc_export.contracts.graph_io import prefill_tokens
from tc_export.contracts.parts import engine_graphs
from tc_export.contracts.shapes import decoder_shapes, vision_shapes
from tc_export.device_build.spec import read_spec
from tc_export.device_build.write import PendingBuild, PendingEngine, write_finish
from tc_export.dtypes import DType
from tc_export.errors import BundleError, CheckFailed, TcExportError
from tc_export.golden.files import GoldenTensor, write_golden
from tc_export.golden.make import Golden, make_golden, prompt_within
from tc_export.model.positions import Clip
from tc_export.parity.tensors.check_bundle import references
from tc_export.targets import Precisions
from tests.device_build.conftest import ARCHITECTURE, PLUGIN, elf_header
from tests.model.small_models import VISION, random_model
from tests.parity.stored import store

MAX_FRAMES, MAX_LENGTH = 2, 70
GRAPHS = ("vision", "decoder")
PREFIX_MASKS = [mask for mask in AttentionMask if mask.is_prefix]


def golden_of(
    mask: AttentionMask, precision: str, head_factor: float = 1.0
) -> tuple[Golden, Golden]:
    model = random_model(TemporalConfig(mask=mask, gamma=0.5), dtype=torch.float64)
    model.decoder.lm_head.weight.mul_(head_factor)
    precisions = Precisions.both(precision)
    with tempfile.TemporaryDirectory() as folder:
        golden = make_golden(
            references(store(model, Path(folder)), precisions),
            precisions,
            max_frames=MAX_FRAMES,
            max_length=MAX_LENGTH,
        )
    return golden["vision"], golden["decoder"]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_tolerance_is_the_format_s_own(precision: str) -> None:
    """Of the size of a few roundings: a quarter of the values' range would pass anything."""
    epsilon = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[precision]
    for golden in golden_of(AttentionMask.FRAME_BLOCK_CAUSAL, precision):
        ((values, tolerance),) = golden.outputs.values()
        largest = np.abs(values).max()
        assert 8 * epsilon * largest <= tolerance < 60 * epsilon * largest
        floats = [DType.from_numpy(x.dtype) for x in golden.inputs.values()]
        assert [x for x in floats if x.is_float] == [precision]


def test_a_model_that_overflows_its_format_gives_no_golden_data() -> None:
    """Its weights are finite in float16, and its logits are not: any engine would pass."""
    with pytest.raises(CheckFailed, match="leaves the range of float16: its logits") as raised:
        golden_of(AttentionMask.CAUSAL, "float16", head_factor=1e5)
    assert "--precision" in str(raised.value.hint)
    golden_of(AttentionMask.CAUSAL, "bfloat16", head_factor=1e5)


@pytest.mark.parametrize("mask", PREFIX_MASKS)
def test_the_truth_is_what_the_model_says_of_the_rounded_inputs(mask: AttentionMask) -> None:
    _, decoder = golden_of(mask, "bfloat16")
    model = random_model(TemporalConfig(mask=mask, gamma=0.5)).to(torch.bfloat16).double()
    given = {name: torch.from_numpy(x.astype(np.float64)) for name, x in decoder.inputs.items()}
    x = given | {name: given[name].long() for name in given if name != "inputs_embeds"}
    length = x["position_ids"].shape[1]
    logits, _ = model.decoder(
        x["inputs_embeds"],
        x["position_ids"],
        x["temporal_ids"],
        x["kv_end"],
        x["logits_indices"],
        model.new_cache(1, length + 9),
    )
    expected, _ = decoder.outputs["logits"]
    np.testing.assert_allclose(expected, logits.detach().numpy(), rtol=1e-6)


def test_masks_and_positions_show() -> None:
    """Two masks give other logits, by more than an engine may err."""
    causal, block, full = (golden_of(mask, "float16")[1].outputs["logits"] for mask in PREFIX_MASKS)
    assert np.abs(causal[0] - block[0]).max() > 2 * causal[1]
    assert np.abs(full[0] - block[0]).max() > 2 * full[1]


@given(
    stride=st.sampled_from([1, 2, 4]),
    max_frames=st.integers(1, 40),
    extra=st.integers(0, 60),
    mask=st.sampled_from(PREFIX_MASKS),
)
def test_the_prompt_fits_one_call(
    stride: int, max_frames: int, extra: int, mask: AttentionMask
) -> None:
    model = random_model(TemporalConfig(mask=mask), pooling={"stride": stride})
    config = model.config
    max_length = config.tokens_per_frame + extra
    segments = prompt_within(config, max_frames, max_length)
    length = sum(segment.length for segment in segments)
    assert 0 < length <= prefill_tokens(config, max_length)
    clips = [segment for segment in segments if isinstance(segment, Clip)]
    assert len(clips) == 1
    assert 1 <= clips[0].frames <= min(3, max_frames)
    if extra >= 12:
        assert length - clips[0].length == 12


def write(folder: Path, golden: dict[str, Golden]) -> None:
    config = random_model(TemporalConfig()).config
    shapes = {
        "vision": vision_shapes(config, MAX_FRAMES),
        "decoder": decoder_shapes(config, MAX_LENGTH),
    }
    (folder / PLUGIN).parent.mkdir(parents=True)
    (folder / PLUGIN).write_bytes(elf_header(ARCHITECTURE))
    (folder / "graphs").mkdir()
    for graph in GRAPHS:
        (folder / tensorrt_graph_path(graph)).write_text("a graph")
    calls = write_golden(folder, golden)
    engines = {
        graph: PendingEngine(
            graph=tensorrt_graph_path(graph),
            engine=f"engines/{graph}.engine",
            precision="bfloat16",
            custom_nodes={},
            shapes=shapes[graph],
            golden=calls[graph],
        )
        for graph in golden
    }
    build = PendingBuild(
        target="orin",
        release="JetPack 6.2",
        cuda="12.6",
        tensorrt="10.3",
        architecture=ARCHITECTURE,
        sm=87,
        plugin_library=PLUGIN,
        plugin_sources=None,
        engines=engines,
    )
    write_finish(folder, build)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    golden = dict(zip(GRAPHS, golden_of(AttentionMask.CAUSAL, "bfloat16"), strict=True))
    write(tmp_path, golden)
    spec = read_spec(tmp_path)
    for graph, data in golden.items():
        for name, tensor in data.inputs.items():
            read = spec.graphs[graph].golden.inputs[name].load(tmp_path)
            np.testing.assert_array_equal(read, tensor.astype(read.dtype))
        for name, (values, tolerance) in data.outputs.items():
            output = spec.graphs[graph].golden.outputs[name]
            np.testing.assert_array_equal(output.load(tmp_path), values)
            assert output.tolerance == tolerance
    sums = (tmp_path / "finish" / "SHA256SUMS").read_text()
    listed = {line.split("  ", 1)[1] for line in sums.splitlines()}
    written = {x.relative_to(tmp_path).as_posix() for x in tmp_path.rglob("*") if x.is_file()}
    assert listed == written - {"finish/SHA256SUMS", "golden/golden.json"}


def test_golden_data_outside_the_profile_is_refused(tmp_path: Path) -> None:
    vision, decoder = golden_of(AttentionMask.CAUSAL, "bfloat16")
    pixels = np.zeros((MAX_FRAMES + 1, 3, VISION.image_size, VISION.image_size), np.float32)
    too_many = Golden(inputs={"pixel_values": pixels}, outputs=vision.outputs)
    with pytest.raises(TcExportError, match="golden pixel_values"):
        write(tmp_path, {"vision": too_many, "decoder": decoder})


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes([0x80, 0x3F, 0x20, 0xC0]))
    tensor = GoldenTensor(file="x.bin", dtype="bfloat16", shape=(2, 1))
    np.testing.assert_array_equal(tensor.load(tmp_path), np.array([[1.0], [-2.5]], np.float32))
    with pytest.raises(BundleError, match="does not hold bfloat16"):
        GoldenTensor(file="x.bin", dtype="bfloat16", shape=(3,)).load(tmp_path)


def test_a_part_is_given_what_the_truth_makes_of_those_before() -> None:
    """So the last part's logits are the whole decoder's, but for the rounding of hidden states."""
    model = random_model(TemporalConfig(gamma=0.5), dtype=torch.float64)
    layers = model.config.text.num_hidden_layers
    _, *parts = engine_graphs(layers, layers)
    with tempfile.TemporaryDirectory() as folder:
        precisions = Precisions.both("float16")
        golden = make_golden(
            references(store(model, Path(folder)), precisions),
            precisions,
            max_frames=MAX_FRAMES,
            max_length=MAX_LENGTH,
            parts=parts,
        )
    whole, last = (golden[name].outputs["logits"] for name in ("decoder", parts[-1].name))
    assert np.abs(whole[0] - last[0]).max() < 2 * whole[1]
    first, second = (golden[each.name] for each in parts[:2])
    handed_on, _ = first.outputs["hidden_states.1"]
    assert (second.inputs["hidden_states.1"] == handed_on.astype(np.float16)).all()
