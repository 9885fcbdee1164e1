# SPDX-License-Identifier: Apache-2.0
"""Draws of a format's noise: what they move, by how much, and that draw 0 moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tc_export.dtypes import DType
from tc_export.ops.quantized_rows import quantize_rows
from tc_export.parity.noise import Draw, OrderedLinear, Shake, draws, order_linears

FORMATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_one_number_in_eight_moves_to_its_neighbour(dtype: torch.dtype) -> None:
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))
    x = (x + 0.01 * x.sign()).to(dtype)  # no subnormal numbers, whose distances are others
    before = x.clone()
    moved = Draw(1).move(x)
    assert torch.equal(x, before), "the input is not changed"
    changed = moved != x
    assert 0.115 < changed.double().mean() < 0.135
    up = moved.double() > x.double()
    assert 0.47 < up[changed].double().mean() < 0.53
    # A neighbour is at the distance of the format's epsilon, relative to a power of two below it.
    steps = (moved.double() - x.double()).abs() / 2.0 ** x.double().abs().log2().floor()
    epsilon = DType.from_torch(dtype).epsilon
    below = changed & (moved.double().abs() < x.double().abs())
    assert torch.allclose(steps[changed & ~below], torch.tensor(epsilon).double(), rtol=1e-3)
    assert bool((steps[below] <= epsilon * 1.001).all())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_zeros_and_what_is_not_finite_stay(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, -0.0, float("inf"), float("-inf"), largest, -largest]
    x = torch.tensor(values, dtype=dtype).repeat(200, 1)
    moved = Draw(3).move(x)
    assert torch.equal(moved[:, :4], x[:, :4])
    assert bool(moved[:, 4:].isfinite().all())
    assert bool((moved[:, 4:] != x[:, 4:]).any()), "the largest number moves down"
    assert bool(Draw(3).move(torch.full((50,), float("nan"), dtype=dtype)).isnan().all())


def test_draws_differ_and_repeat() -> None:
    x = torch.randn(50, 60)
    first, plain = draws(3), draws(1)[0]
    assert [draw.number for draw in first] == [0, 1, 2]
    assert torch.equal(plain.move(x), x)
    moved = [draw.move(x) for draw in first]
    assert not torch.equal(moved[1], moved[2])
    assert torch.equal(Draw(1).move(x), moved[1])
    again = first[1].move(x)
    assert not torch.equal(again, moved[1]), "the next layer is moved otherwise"


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sums_are_taken_in_another_order(dtype: torch.dtype) -> None:
    """The same sum but for its rounding, which happens once."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(96, 40), nn.Linear(40, 7, bias=False))
    weights = {name: x.to(dtype) for name, x in model.state_dict().items()}
    order_linears(model)
    wide = torch.promote_types(dtype, torch.float32)
    model.load_state_dict({name: x.to(wide) for name, x in weights.items()}, assign=True)
    first = model[0]
    assert isinstance(first, OrderedLinear)
    x = torch.randn(300, 96).to(dtype)
    exact = x.double() @ first.weight.double().T + first.bias.double()
    epsilon = DType.from_torch(dtype).epsilon
    plain = first(x)
    assert plain.dtype == dtype
    differing = []
    for number in range(4):
        Draw(number).order_sums(model)
        assert (first.cut is None) == (number == 0)
        found = first(x)
        assert (found.double() - exact).abs().max() < 40 * epsilon * exact.abs().max()
        if dtype.itemsize == 2:  # no more than the one rounding
            excess = (found.double() - exact).abs() - 0.502 * epsilon * exact.abs()
            assert excess.max() < 1e-5
        differing.append(int((found != plain).sum()))
    assert differing[0] == 0
    if dtype.itemsize > 2:
        assert min(differing[1:]) > 100


def test_a_layer_of_one_channel_has_one_order() -> None:
    model = nn.Sequential(nn.Linear(1, 3))
    order_linears(model)
    Draw(5).order_sums(model)
    assert torch.equal(model(torch.ones(1, 1)), model[0].weight.T + model[0].bias)


def test_the_variance_is_that_of_one_and_a_half_roundings() -> None:
    x = torch.full((400, 400), 1.5, dtype=torch.float32)
    moved = (Draw(9).move(x) - x).double().numpy() / 2.0**-23
    assert np.square(moved).mean() == pytest.approx(1.5 / 12, rel=0.05)


@pytest.mark.parametrize("codes_a_row", [0.25, 1.0])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_so_many_codes_of_a_row_fall_the_other_way(head_dim: int, codes_a_row: float) -> None:
    rows = torch.randn(400, 3 * head_dim, generator=torch.Generator().manual_seed(4))
    shaken = Shake(np.random.default_rng(1), head_dim, codes_a_row)(rows)

    def codes(x: torch.Tensor) -> torch.Tensor:
        found, _ = quantize_rows(x.unflatten(-1, (3, head_dim)))
        return found.to(torch.int16)

    off = (codes(shaken) - codes(rows)).abs()
    assert int(off.max()) == 1
    assert 0.8 < off.sum(-1).double().mean() / codes_a_row < 1.3


def test_only_what_enters_a_cache_in_int8_is_shaken() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = nn.ModuleDict(
                {f"{x}_proj": nn.Linear(32, 32, bias=False) for x in "qkvo"}
            )

    layer, x = Layer(), torch.randn(5, 32)
    order_linears(layer)
    plain = {name: linear(x) for name, linear in layer.self_attn.items()}
    Draw(1).shake_cache(layer, 16)
    changed = {n for n, linear in layer.self_attn.items() if not torch.equal(linear(x), plain[n])}
    assert changed == {"k_proj", "v_proj"}
    Draw(0).shake_cache(layer, 16)
    assert all(torch.equal(linear(x), plain[n]) for n, linear in layer.self_attn.items())
