# SPDX-License-Identifier: Apache-2.0
"""The decoder's logits over whole sequences, against transformers' LLaMA as an oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tc_export.config import RopeConfig, TemporalConfig
from tc_export.model.decoder import RmsNorm
from tc_export.model.positions import Layout, lay_out, pad
from tc_export.model.tc_llava import TcLlava
from tests.model.brute_force import MASKS, READINGS, Run
from tests.model.sequences import SEQUENCES, segments_of, temporal_config
from tests.model.small_models import (
    oracle_logits,
    oracle_of,
    random_embeds,
    random_model,
    run,
    text_config,
)

# Logits are of order 1 to 10, and float64 keeps sixteen digits; a dozen operations lose a few.
FLOAT64 = {"rtol": 1e-10, "atol": 1e-10}
# The same for float32's seven digits: the oracle adds up in another order.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}


def layout_of(runs: list[Run], temporal: TemporalConfig) -> Layout:
    return lay_out(segments_of(runs), temporal)[0]


def logits_of(model: TcLlava, embeds: Tensor, runs: list[Run]) -> Tensor:
    layout = layout_of(runs, model.config.temporal)
    return run(model, embeds, layout.batched())[0]


def assert_equals_oracle(
    model: TcLlava, sequences: dict[str, list[Run]], tolerance: dict[str, float]
) -> None:
    temporal = model.config.temporal
    oracle = oracle_of(model)
    for name, runs in sequences.items():
        embeds = random_embeds(model, layout_of(runs, temporal).length)
        expected = oracle_logits(oracle, embeds, runs, temporal)
        found = logits_of(model, embeds, runs)
        assert expected.std() > 0.1, "the oracle says nothing"
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("after_clip", READINGS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_and_reading(mask: str, after_clip: str) -> None:
    assert_equals_oracle(random_model(temporal_config(mask, after_clip)), SEQUENCES, FLOAT64)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.75])
def test_every_gamma(gamma: float) -> None:
    model = random_model(temporal_config(gamma=gamma))
    assert_equals_oracle(model, SEQUENCES, FLOAT64)


TEXTS: dict[str, dict[str, Any]] = {
    "one head for all keys": {"num_key_value_heads": 1},
    "a key head a query head": {"num_key_value_heads": 4},
    "six heads on three": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 6},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "large epsilon": {"rms_norm_eps": 0.1},
    "linear": {"rope": RopeConfig(rope_type="linear", factor=4.0)},
    "llama3": {
        "rope": RopeConfig(
            rope_type="llama3", factor=8.0, original_max_position_embeddings=32, theta=500.0
        )
    },
    "yarn": {"rope": RopeConfig(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)},
}


@pytest.mark.parametrize("changes", TEXTS.values(), ids=TEXTS)
def test_every_shape_of_llama(changes: dict[str, Any]) -> None:
    model = random_model(temporal_config(gamma=0.5), text_config(**changes))
    assert_equals_oracle(model, SEQUENCES, FLOAT64)


@pytest.mark.parametrize("mask", MASKS)
def test_in_float32_nothing_of_the_oracle_is_exchanged(mask: str) -> None:
    model = random_model(temporal_config(mask, gamma=0.3), dtype=torch.float32)
    assert_equals_oracle(model, SEQUENCES, FLOAT32)


def test_tied_heads_share_their_weight() -> None:
    model = random_model(temporal_config(), text_config(tie_word_embeddings=True))
    assert model.decoder.lm_head.weight is model.embed_tokens.weight


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_padded_batch_equals_each_alone(mask: str, side: Any) -> None:
    """Padding holds embeddings of its own, large ones, that nobody may see."""
    temporal = temporal_config(mask, gamma=0.3)
    model = random_model(temporal)
    batch = list(SEQUENCES.values())
    layouts = [layout_of(runs, temporal) for runs in batch]
    padded = pad(layouts, side)
    alone = [random_embeds(model, layout.length, seed=i) for i, layout in enumerate(layouts)]
    embeds = torch.full((len(batch), padded.length, alone[0].shape[-1]), 50.0).double()
    real = torch.from_numpy(padded.position_ids >= 0)
    for b, each in enumerate(alone):
        embeds[b, real[b]] = each[0]

    logits, _ = run(model, embeds, padded)

    assert logits.isfinite().all()
    for b, (each, layout) in enumerate(zip(alone, layouts, strict=True)):
        expected, _ = run(model, each, layout.batched())
        torch.testing.assert_close(logits[b, real[b]], expected[0], **FLOAT64)


def test_logits_are_given_for_the_tokens_asked_for() -> None:
    model = random_model(temporal_config())
    layout = layout_of([2, (2, 3), 2], model.config.temporal).batched()
    embeds = random_embeds(model, layout.length)
    every, _ = run(model, embeds, layout)
    some, _ = model.decoder(
        embeds,
        torch.from_numpy(layout.position_ids),
        torch.from_numpy(layout.temporal_ids),
        torch.from_numpy(layout.kv_end),
        torch.tensor([[9, 0]]),
        model.new_cache(1, 10),
    )
    torch.testing.assert_close(some, every[:, [9, 0]], **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_conversion_keeps_the_frequencies(dtype: torch.dtype) -> None:
    """Rounded frequencies would give wrong angles at large positions."""
    model = random_model(temporal_config(), dtype=dtype)
    assert model.embed_tokens.weight.dtype == dtype
    assert torch.equal(model.decoder.inv_freq, random_model(temporal_config()).decoder.inv_freq)
    assert model.decoder.inv_freq.dtype == torch.float32
    runs: list[Run] = [2, (2, 3), 2]
    embeds = random_embeds(model, 10)
    found = logits_of(model, embeds, runs)
    exact_model = random_model(temporal_config(), dtype=torch.float64)
    exact_model.load_state_dict(model.state_dict())
    exact = logits_of(exact_model, embeds.double(), runs)
    # A dozen roundings a layer, of values up to the largest logit.
    bound = 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_norm_is_wide_inside(dtype: torch.dtype) -> None:
    """300 squared is past float16's largest number."""
    x = 300 * torch.randn((3, 5, 24), generator=torch.Generator().manual_seed(4)).to(dtype)
    ours, theirs = RmsNorm(24, 1e-5).to(dtype), LlamaRMSNorm(24, 1e-5).to(dtype)
    for norm in (ours, theirs):
        norm.weight.data = torch.linspace(0.5, 2, 24, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


def test_frame_block_says_what_it_needs() -> None:
    model = random_model(temporal_config("frame_block"))
    zeros = torch.zeros((1, 1), dtype=torch.int64)
    with pytest.raises(ValueError, match="key_frame_ids"):
        model.decoder(random_embeds(model, 1), zeros, zeros, zeros, zeros, model.new_cache(1, 2))


# Guards against a small model in which nothing matters.

LIVE: list[Run] = [2, (3, 2), 1, (2, 2), 3]


def last_logits(temporal: TemporalConfig, embeds: Tensor) -> Tensor:
    return logits_of(random_model(temporal), embeds, LIVE)[0, -1]


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.0},
        {"gamma": 1.01},
        {"after_clip": "share"},
        {"mask": "causal"},
        {"mask": "full_visual"},
        {"mask": "frame_block"},
    ],
    ids=str,
)
def test_each_setting_changes_the_logits(change: dict[str, Any]) -> None:
    embeds = random_embeds(random_model(temporal_config()), 16)
    usual = last_logits(temporal_config(), embeds)
    changed = last_logits(temporal_config(**change), embeds)
    assert (usual - changed).abs().max() > 1e-4


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_order_of_frames_changes_the_logits(gamma: float) -> None:
    embeds = random_embeds(random_model(temporal_config()), 16)
    swapped = embeds.clone()
    swapped[:, 2:4], swapped[:, 4:6] = embeds[:, 4:6], embeds[:, 2:4]
    temporal = temporal_config(gamma=gamma)
    difference = last_logits(temporal, embeds) - last_logits(temporal, swapped)
    assert difference.abs().max() > 1e-3
