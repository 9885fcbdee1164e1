# SPDX-License-Identifier: Apache-2.0
"""AWQ, GPTQ and SmoothQuant: the model stays what it was, and what its matrices give errs less."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.checkpoint.safetensors_file import read_header
from tc_export.dtypes import DType
from tc_export.model.input_rounding import InputRounding
from tc_export.quantize.awq import by_size_of_inputs
from tc_export.quantize.calibration import Calibration
from tc_export.quantize.channels import PAIRS, Equalised, Factors, equalise
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.quantize.gptq import inverse_factor, round_with_inputs
from tc_export.quantize.grouped import SHRINKINGS, Grouped, round_in_groups
from tc_export.quantize.layer import CalibratedQuantizer, LayerWeight
from tc_export.quantize.smooth import by_range, scale_of_inputs
from tc_export.recipes import load_recipe
from tests.repository import REPOSITORY

DEMO = REPOSITORY / "checkpoints" / "tc-llava-tiny"


def inputs_with_outliers(tokens: int, channels: int) -> Tensor:
    """Correlated, and a few channels are far larger than the rest, as in real models."""
    random = torch.Generator().manual_seed(4)
    mixed = torch.randn(tokens, channels // 4, generator=random) @ torch.randn(
        channels // 4, channels, generator=random
    )
    x = mixed + torch.randn(tokens, channels, generator=random)
    x[:, ::17] *= 30
    return x


def error(weight: Tensor, x: Tensor, rounded: Grouped) -> float:
    """Mean square error of the products, in float64."""
    truth = x.double() @ weight.double().T
    return float((x.double() @ rounded.widened().double().T - truth).square().mean())


def gptq(
    weight: Tensor, x: Tensor, dtype: DType, group: int | None, *, search: bool = False
) -> Grouped:
    return round_with_inputs(weight, inverse_factor(x), dtype, group, torch.float16, search=search)


@pytest.mark.parametrize("dtype", [DType.INT4, DType.INT8])
def test_gptq_errs_less_than_rounding(dtype: DType) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    x = inputs_with_outliers(400, 128)
    plain = round_in_groups(weight, dtype, 32, torch.float16, search=True)
    found = gptq(weight, x, dtype, 32, search=True)
    assert error(weight, x, found) < 0.5 * error(weight, x, plain)
    assert found.numbers.abs().max() <= (8 if dtype is DType.INT4 else 127)


def test_gptq_searches_scales_by_what_errors_cost_in_the_end() -> None:
    """In the first group, where no weight has moved yet: the error of a channel over the diagonal
    of the inverse of what is left of X^T X."""
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) ** 3
    x = inputs_with_outliers(400, 64)
    found = gptq(weight, x, DType.INT4, 32, search=True)
    gram = x.double().T @ x.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(64)
    cost = torch.stack([1 / torch.linalg.inv(gram[k:, k:])[0, 0] for k in range(32)])
    part = weight[:, :32].double()
    whole = torch.maximum(part.amin(dim=1) / -8, part.amax(dim=1) / 7)
    tried = [(share * whole).half().double() for share in SHRINKINGS]

    def lost(scale: Tensor) -> Tensor:
        numbers = (part / scale[:, None]).round().clamp(-8, 7)
        return ((numbers * scale[:, None] - part).square() * cost).sum(dim=1)

    least = torch.stack([lost(scale) for scale in tried]).amin(dim=0)
    torch.testing.assert_close(lost(found.scales[0].double()), least, rtol=1e-4, atol=0)


def test_gptq_without_correlation_is_rounding() -> None:
    """Of channels that have nothing to do with each other none can make good for another."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    plain = round_in_groups(weight, DType.INT4, 32, torch.float16, search=False)
    found = gptq(weight, torch.eye(64), DType.INT4, 32)
    assert torch.equal(found.numbers, plain.numbers)
    assert torch.equal(found.scales, plain.scales)


@pytest.mark.parametrize("group", [16, 256, None])
def test_gptq_is_the_update_of_one_channel_after_the_other(group: int | None) -> None:
    """In float64, and in no blocks: after each channel all later ones make good for its error, by
    the inverse of what is left of X^T X."""
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(1))
    x = inputs_with_outliers(700, 256)
    found = gptq(weight, x, DType.INT8, group)
    w = weight.double().clone()
    gram = x.double().T @ x.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(256)
    scales = found.scales.double().repeat_interleave(256 // len(found.scales), dim=0)
    for k in range(256):
        inverse = torch.linalg.inv(gram[k:, k:])
        number = (w[:, k] / scales[k]).round().clamp(-127, 127)
        # A tie is decided by noise: float32 and float64 may part by one, never by more.
        assert (number - found.numbers[k]).abs().max() <= 1
        assert ((number - found.numbers[k]) != 0).float().mean() < 0.5
        number = found.numbers[k].double()
        lost = (w[:, k] - number * scales[k]) / inverse[0, 0]
        w[:, k:] -= lost[:, None] * inverse[0]


def test_gptq_takes_channels_that_are_never_used() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    x[:, 7] = 0
    for inputs in (x, torch.zeros(50, 64)):
        found = gptq(weight, inputs, DType.INT4, 32)
        assert found.scales.isfinite().all()


def layer(heads: int, key_heads: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a decoder layer of 64 channels, and what enters its matrices."""
    random = torch.Generator().manual_seed(heads)
    shapes = {
        "input_layernorm.weight": (64,),
        "post_attention_layernorm.weight": (64,),
        "self_attn.q_proj.weight": (16 * heads, 64),
        "self_attn.k_proj.weight": (16 * key_heads, 64),
        "self_attn.v_proj.weight": (16 * key_heads, 64),
        "self_attn.v_proj.bias": (16 * key_heads,),
        "self_attn.o_proj.weight": (64, 16 * heads),
        "mlp.gate_proj.weight": (96, 64),
        "mlp.up_proj.weight": (96, 64),
        "mlp.down_proj.weight": (64, 96),
    }
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    widths = {
        name.removesuffix(".weight"): w.shape[-1] for name, w in weights.items() if w.ndim > 1
    }
    entering = {width: inputs_with_outliers(300, width) for width in set(widths.values())}
    return weights, {name: entering[width] for name, width in widths.items()}


def gated(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The part after attention in float64, from normalised hidden states: norm, gate, up, down."""
    w = {name: value.double() for name, value in weights.items()}
    h = x.double() * w["post_attention_layernorm.weight"]
    gate = torch.nn.functional.silu(h @ w["mlp.gate_proj.weight"].T)
    return (gate * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def attended(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Queries, keys, and what a token that sees itself alone gives, in float64."""
    w = {name: value.double() for name, value in weights.items()}
    h = x.double() * w["input_layernorm.weight"]
    v = h @ w["self_attn.v_proj.weight"].T + w["self_attn.v_proj.bias"]
    times = w["self_attn.o_proj.weight"].shape[1] // v.shape[1]
    heads = v.view(len(v), -1, 16).repeat_interleave(times, dim=1).flatten(1)
    return [
        h @ w["self_attn.q_proj.weight"].T,
        h @ w["self_attn.k_proj.weight"].T,
        heads @ w["self_attn.o_proj.weight"].T,
    ]


def rounding(name: str, weight: Tensor) -> Grouped:
    return round_in_groups(weight, DType.INT4, 32, torch.float16, search=False)


METHODS = {
    "awq": by_size_of_inputs(rounding),
    "smooth int8": by_range(rounding, DType.INT8),
    "smooth fp8": by_range(rounding, DType.FP8),
}


def equalised(weights: dict[str, Tensor], inputs: dict[str, Tensor], factors: Factors) -> Equalised:
    return equalise(weights, inputs, lambda name: True, factors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_scaled_channels_change_no_result(key_heads: int, method: str) -> None:
    weights, inputs = layer(4, key_heads)
    changed = equalised(weights, inputs, METHODS[method]).weights
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(9))
    for found, expected in (
        (gated(changed, x), gated(weights, x)),
        *zip(attended(changed, x), attended(weights, x), strict=True),
    ):
        size = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * size)
    scaled = {
        pair.before
        for pair in PAIRS
        if not torch.equal(changed[f"{pair.before}.weight"], weights[f"{pair.before}.weight"])
    }
    assert {"input_layernorm", "post_attention_layernorm", "mlp.up_proj"} <= scaled


@pytest.mark.parametrize("method", METHODS)
def test_inputs_shrink_as_their_columns_grow(method: str) -> None:
    weights, inputs = layer(4, 4)
    changed = equalised(weights, inputs, METHODS[method])
    for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        found, before = (of[f"{name}.weight"].abs().amax(0) for of in (changed.weights, weights))
        s = found / before
        torch.testing.assert_close(changed.inputs[name] * s, inputs[name], rtol=1e-4, atol=1e-4)


def test_awq_errs_less_than_rounding() -> None:
    weights, inputs = layer(4, 4)
    changed = equalised(weights, inputs, METHODS["awq"])
    name = "mlp.gate_proj"
    plain = error(weights[f"{name}.weight"], inputs[name], rounding("", weights[f"{name}.weight"]))
    found = changed.weights[f"{name}.weight"]
    assert error(found, changed.inputs[name], rounding("", found)) < 0.8 * plain


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
def test_smooth_errs_less_than_rounding(dtype: DType) -> None:
    """Both sides in eight bits, and a few channels of the inputs far larger than the rest."""
    weights, inputs = layer(4, 4)

    def of_eight_bits(name: str, weight: Tensor) -> Grouped:
        return round_in_groups(weight, dtype, None, torch.float16, search=False)

    changed = equalised(weights, inputs, by_range(of_eight_bits, dtype))
    name = "mlp.gate_proj"

    def lost(weight: Tensor, x: Tensor) -> float:
        entering = InputRounding(dtype, float(scale_of_inputs(x, dtype)))(x)
        found = entering.double() @ of_eight_bits("", weight).widened().double().T
        return float((found - x.double() @ weight.double().T).square().mean())

    plain = lost(weights[f"{name}.weight"], inputs[name])
    # Floating point has as many digits for small channels as for large ones.
    share = 0.3 if dtype is DType.INT8 else 1.05
    assert lost(changed.weights[f"{name}.weight"], changed.inputs[name]) < share * plain


def test_the_scale_of_inputs_cuts_off_what_stands_alone() -> None:
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    spread = float(x.abs().max()) / 127
    assert float(scale_of_inputs(x, DType.INT8)) <= spread
    x[7, 7] = 1.5 * float(x.abs().max())
    assert float(scale_of_inputs(x, DType.INT8)) < 0.95 * 1.5 * spread
    assert 0 < float(scale_of_inputs(torch.zeros(3, 4), DType.INT8)) < 1e-30
    assert (
        InputRounding(DType.INT8, float(scale_of_inputs(torch.zeros(3, 4), DType.INT8)))(
            torch.zeros(3, 4)
        )
        .eq(0)
        .all()
    )


def test_what_is_kept_is_not_scaled_for() -> None:
    weights, inputs = layer(4, 4)
    changed = equalise(weights, inputs, lambda name: False, METHODS["awq"])
    assert all(torch.equal(changed.weights[name], weights[name]) for name in weights)
    assert all(changed.inputs[name] is inputs[name] for name in inputs)


def test_calibration_sees_what_enters_each_matrix() -> None:
    """The inputs of layer 1 are those of the whole model, on the same questions."""
    checkpoint = open_checkpoint(DEMO)
    calibration = Calibration(checkpoint, clips=3)
    assert calibration.tokens > 50
    first = calibration.inputs(0)
    second = calibration.inputs(1)
    assert first.keys() == second.keys()
    width = checkpoint.config.model.text.hidden_size
    assert first["self_attn.q_proj"].shape == (calibration.tokens, width)
    assert first["self_attn.q_proj"] is first["self_attn.v_proj"]
    assert first["mlp.gate_proj"] is first["mlp.up_proj"]
    assert first["mlp.gate_proj"] is not first["self_attn.q_proj"]
    assert not torch.equal(first["self_attn.q_proj"], second["self_attn.q_proj"])


@pytest.mark.parametrize("name", ["int4-gptq", "int4-awq-gptq"])
def test_a_model_errs_less_than_rounding(tmp_path: Path, name: str) -> None:
    """On questions of another seed, in the last layer. (No channel of this model stands out, which
    is what AWQ is for: alone it is as good as rounding there.)"""
    source = open_checkpoint(DEMO)

    def hidden(folder: Path) -> np.ndarray:
        calibration = Calibration(open_checkpoint(folder), clips=6, seed=1000)
        layers = source.config.model.text.num_hidden_layers
        found = [calibration.inputs(layer)["mlp.gate_proj"] for layer in range(layers)][-1]
        values: np.ndarray = found.numpy()
        # What leaves the layers before is what counts: a norm's channels may be scaled.
        return values / np.square(values).mean(axis=0, keepdims=True) ** 0.5

    truth = hidden(DEMO)
    calibrated = load_recipe(name)
    plain = calibrated.model_copy(update={"name": "plain", "method": "round"})
    errors = [
        np.square(
            hidden(quantize_checkpoint(source, each, tmp_path / each.name).folder) - truth
        ).mean()
        for each in (calibrated, plain)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_channels_are_scaled_before_errors_are_made_good(tmp_path: Path) -> None:
    """The products of a layer with channels that stand out err less than by either alone."""
    weights, inputs = layer(4, 4)
    rule = load_recipe("int4-awq").weights[0].model_copy(update={"group_size": 32})
    save_file(weights, tmp_path / "layer.safetensors")
    located = read_header(tmp_path / "layer.safetensors")
    of = [
        LayerWeight(name, location, rule if "_proj.weight" in name else None)
        for name, location in located.items()
    ]

    def lost(name: str) -> float:
        calibration = cast(Calibration, SimpleNamespace(inputs=lambda layer: inputs))
        found = CalibratedQuantizer(load_recipe(name), calibration).quantize(0, of)
        norm, gate = (
            found[f"{name}.weight"] for name in ("post_attention_layernorm", "mlp.gate_proj")
        )
        assert isinstance(norm, Tensor)
        assert isinstance(gate, Grouped)
        # What enters the product was divided by what the norm was.
        s = weights["post_attention_layernorm.weight"] / norm
        truth = inputs["mlp.gate_proj"].double() @ weights["mlp.gate_proj.weight"].double().T
        product = (inputs["mlp.gate_proj"] / s).double() @ gate.widened().double().T
        return float((product - truth).square().mean())

    both, awq, gptq = (lost(name) for name in ("int4-awq-gptq", "int4-awq", "int4-gptq"))
    assert both < 0.9 * min(awq, gptq), (both, awq, gptq)
