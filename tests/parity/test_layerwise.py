# SPDX-License-Identifier: Apache-2.0
"""Layer by layer, the model gives the numbers that it gives as a whole."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tc_export.dtypes import DType
from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Clip, Segment, Text, lay_out
from tc_export.parity import layerwise
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.noise import draws
from tc_export.parity.part_loader import PartLoader
from tc_export.parity.sequences import TokenSequence
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tc_export.targets import Precisions
from tests.exported import Exported, export_small

LAST_BITS = 1e-13  # of float64: sums are cut in other places
MASKS = ["causal", "full_visual", "frame_block", "frame_block_causal"]


@pytest.fixture(scope="module", params=MASKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_small(
        tmp_path_factory.mktemp("layers"),
        text={"num_hidden_layers": 3},
        temporal={"mask": request.param, "gamma": 0.7},
    )


def sequences(exported: Exported) -> list[TokenSequence]:
    """Two clips, text alone, and a prompt with decode steps after it."""
    m = exported.config.tokens_per_frame
    random = np.random.default_rng(2)
    found = []
    for segments in (
        [Text(3), Clip(3, m), Text(2), Clip(2, m), Text(4)],
        [Text(9)],
        [Clip(4, m), Text(3), *[Text(1)] * 5],
    ):
        layout, _ = lay_out(segments, exported.config.temporal)
        embeds = random.standard_normal((layout.length, exported.config.text.hidden_size))
        wanted = np.unique(random.integers(0, layout.length, 6))
        found.append(TokenSequence(embeds=embeds, layout=layout, logits_indices=wanted))
    return found


def whole_logits(exported: Exported, sequence: TokenSequence, dtype: torch.dtype) -> np.ndarray:
    model = exported.checkpoint.load_model(dtype)
    layout = sequence.layout.batched()
    frame_ids = torch.from_numpy(layout.frame_ids)
    logits, _ = model.decoder(
        torch.from_numpy(sequence.embeds).to(dtype)[None],
        torch.from_numpy(layout.position_ids),
        torch.from_numpy(layout.temporal_ids),
        torch.from_numpy(layout.kv_end),
        torch.from_numpy(sequence.logits_indices)[None],
        model.new_cache(1, layout.length),
        None if exported.config.temporal.mask.is_prefix else frame_ids,
    )
    return logits[0].detach().to(torch.float64).numpy()


@pytest.mark.parametrize("queries", [1, 7, 512])
def test_logits_are_those_of_the_whole_model(
    exported: Exported, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "QUERIES_A_CALL", queries)
    model = LayerwiseModel(exported.checkpoint, DType.FLOAT64)
    asked = sequences(exported)
    for sequence, found in zip(asked, model.logits(asked), strict=True):
        expected = whole_logits(exported, sequence, torch.float64)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=LAST_BITS * abs(expected).max())


def test_features_are_those_of_the_whole_model(exported: Exported) -> None:
    size = exported.config.vision.image_size
    random = np.random.default_rng(4)
    clips = [random.standard_normal((frames, 3, size, size)) for frames in (1, 11)]
    whole = TorchVisionEngine(exported.checkpoint.load_model(torch.float64))
    model = LayerwiseModel(exported.checkpoint, DType.FLOAT64)
    for clip, found in zip(clips, model.features(clips), strict=True):
        expected = whole.run({"pixel_values": clip})["visual_features"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=LAST_BITS * abs(expected).max())


def test_greedy_answers_are_those_of_a_session(exported: Exported) -> None:
    """Prompts of different lengths in one pass, with other tokens after them; each is fed back."""
    m = exported.config.tokens_per_frame
    asked: list[TokenSequence] = []
    prompts: dict[int, list[Segment]] = {}
    drafts: list[tuple[list[Segment], int]] = [
        ([Text(2), Clip(3, m), Text(3)], 9),  # more than the answer has
        ([Text(4)], 0),
        ([Clip(1, m), Text(6)], 2),
    ]
    for segments, forced in drafts:
        layout, _ = lay_out([*segments, Text(forced)], exported.config.temporal)
        embeds = np.random.default_rng(layout.length).standard_normal(
            (layout.length, exported.config.text.hidden_size)
        )
        wanted = np.arange(layout.length)
        if len(segments) > 1:
            prompts[len(asked)] = segments
        asked.append(TokenSequence(embeds=embeds, layout=layout, logits_indices=wanted))
    model = LayerwiseModel(exported.checkpoint, DType.FLOAT64)
    engine = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64))
    logits_of, answers = model.logits_and_answers(asked, prompts, 6)
    for found, expected in zip(logits_of, model.logits(asked), strict=True):
        np.testing.assert_array_equal(found, expected)
    for (index, segments), answer in zip(prompts.items(), answers, strict=True):
        length = sum(segment.length for segment in segments)
        session = DecoderSession(engine, exported.config, length + 6)
        logits = session.prefill(asked[index].embeds[:length], segments)
        assert len(answer.tokens) == 6
        for token, found in zip(answer.tokens, answer.logits, strict=True):
            np.testing.assert_allclose(found, logits, rtol=0, atol=1e-12 * abs(logits).max())
            assert token == int(logits.argmax())
            logits = session.step(model.embed(np.array([token]))[0])


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_other_formats_round_as_the_whole_model_does(exported: Exported, dtype: DType) -> None:
    model = LayerwiseModel(exported.checkpoint, dtype)
    asked = sequences(exported)
    truths = LayerwiseModel(exported.checkpoint, DType.FLOAT64).logits(asked)
    for sequence, found, truth in zip(asked, model.logits(asked), truths, strict=True):
        whole = abs(whole_logits(exported, sequence, dtype.torch) - truth).max()
        error = abs(found.astype(np.float64) - truth).max()
        assert 0.2 * whole < error < 5 * whole


def test_one_layer_is_in_memory_at_a_time(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[nn.Module]] = []
    load = PartLoader.load

    def watched(self: PartLoader, name: str, **how: bool) -> nn.Module:
        gc.collect()
        if "layers" in name:
            assert not [ref for ref in alive if ref() is not None], name
        module = load(self, name, **how)
        if "layers" in name:
            alive.append(weakref.ref(module))
        return module

    monkeypatch.setattr(PartLoader, "load", watched)
    seen: list[Any] = []
    model = LayerwiseModel(exported.checkpoint, DType.FLOAT64, lambda *x: seen.append(x))
    model.logits(sequences(exported))
    size = exported.config.vision.image_size
    model.features([np.zeros((1, 3, size, size))])
    assert len(alive) == len(seen) > 3
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_draws_differ_by_the_formats_noise(exported: Exported, dtype: DType) -> None:
    """The first is plain PyTorch; all err alike against the truth, and none as another does."""
    model = LayerwiseModel(exported.checkpoint, dtype)
    asked = sequences(exported)
    truths = LayerwiseModel(exported.checkpoint, DType.FLOAT64).logits(asked)
    plain = model.logits(asked)
    found = list(model.logit_draws(asked, draws(4)))
    for index, truth in enumerate(truths):
        of_draws = [logits[index].astype(np.float64) for logits in found]
        assert np.array_equal(of_draws[0], plain[index])
        errors = [abs(x - truth).max() for x in of_draws]
        for error in errors[1:]:
            assert 0.2 * errors[0] < error < 5 * errors[0]
        apart = [abs(of_draws[a] - of_draws[b]).max() for a in range(4) for b in range(a)]
        assert min(apart) > 0.2 * min(errors)
    size = exported.config.vision.image_size
    clips = [np.random.default_rng(5).standard_normal((2, 3, size, size))]
    features = [x for (x,) in model.feature_draws(clips, draws(3))]
    assert np.array_equal(features[0], model.features(clips)[0])
    assert not np.array_equal(features[1], features[2])
    hidden = [x for (x,) in model.hidden_draws(asked[:1], draws(3), range(2))]
    assert np.array_equal(hidden[0], model.hidden(asked[:1], range(2))[0])
    assert not np.array_equal(hidden[1], hidden[2])


def test_all_draws_go_through_a_layer_while_it_is_read_once(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = PartLoader.load

    def watched(self: PartLoader, name: str, **how: bool) -> nn.Module:
        read.append(name)
        return load(self, name, **how)

    monkeypatch.setattr(PartLoader, "load", watched)
    model = LayerwiseModel(exported.checkpoint, DType.FLOAT32)
    list(model.logit_draws(sequences(exported), draws(5)))
    assert [name for name in read if "layers" in name] == [f"decoder.layers.{i}" for i in range(3)]


def test_weights_are_rounded_to_each_graphs_format(exported: Exported) -> None:
    """The truth has the weights that the engine has: those of float32 are not what it is given."""
    precisions = Precisions.model_validate({"vision": "bfloat16", "decoder": "float16"})
    rounded = LayerwiseModel(exported.checkpoint, DType.FLOAT64, weights=precisions)
    assert "vision bfloat16, decoder float16" in rounded.name
    parts = PartLoader(exported.checkpoint, DType.FLOAT64, precisions)
    for name, dtype in (
        ("vision.vision_tower.layers.0.mlp.fc1.weight", torch.bfloat16),
        ("decoder.layers.1.mlp.up_proj.weight", torch.float16),
    ):
        stored = exported.checkpoint.tensors[name].as_tensor()
        module, _, parameter = name.rpartition(".")
        found = parts.load(module).get_parameter(parameter)
        assert torch.equal(found, stored.to(dtype).double())
        assert not torch.equal(found, stored.double())
    asked = sequences(exported)[:1]
    exact = LayerwiseModel(exported.checkpoint, DType.FLOAT64).logits(asked)[0]
    cost = abs(rounded.logits(asked)[0] - exact).max()
    assert 1e-5 < cost < 0.1 * abs(exact).max()
    same = LayerwiseModel(exported.checkpoint, DType.FLOAT32, weights=Precisions.both("float32"))
    assert "weights" not in same.name
