# SPDX-License-Identifier: Apache-2.0
"""`TcDualRope`: the PyTorch op against float64 loops, its gradient, and its export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tc_export import ops
from tests.ops import brute_force


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one call: B, H, S, D, R, and what is asked of it."""

    batch: int = 2
    heads: int = 3
    tokens: int = 5
    head_dim: int = 8
    half: int = 4
    gamma: float = 1.0
    attention_factor: float = 1.0
    far: int = 0


CASES = {
    "usual": Case(),
    "one of everything": Case(batch=1, heads=1, tokens=1, head_dim=2, half=1),
    "gamma 0": Case(gamma=0.0),
    "gamma fractional": Case(gamma=0.37),
    "gamma large": Case(gamma=3.5),
    "part of the channels": Case(head_dim=12, half=4, gamma=0.5),
    "an odd channel is left": Case(head_dim=11, half=3, gamma=0.5),
    "attention factor": Case(attention_factor=1.3, gamma=0.5),
    "far along": Case(far=100_000, gamma=0.3),
    "odd sizes": Case(batch=3, heads=7, tokens=13, head_dim=10, half=5, gamma=0.25),
}


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(5)
    shape = (case.batch, case.heads, case.tokens, case.head_dim)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    position = case.far + torch.arange(case.tokens).expand(case.batch, -1).clone()
    temporal = case.far + torch.randint(0, 9, (case.batch, case.tokens), generator=generator)
    position[-1, -1] = temporal[-1, -1] = -1  # padding
    inv_freq = (10000.0 ** -(torch.arange(case.half) / case.half)).float()
    return x, position, temporal, inv_freq, case.gamma, case.attention_factor


def expected_of(call: tuple[Any, ...]) -> Tensor:
    plain = [a.tolist() if isinstance(a, Tensor) else a for a in call]
    return torch.tensor(brute_force.dual_rope(*plain), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_loops(case: Case) -> None:
    call = arguments(case)
    # At position 100,000 float64 itself leaves 1e-11 of an angle.
    torch.testing.assert_close(ops.dual_rope(*call), expected_of(call), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_narrow_types_keep_their_angles(case: Case, dtype: torch.dtype) -> None:
    """Angles are float32 in every type: what is lost is the rounding of x, cos and sin."""
    call = arguments(case, dtype)
    expected = expected_of(call)
    found = ops.dual_rope(*call)
    assert found.dtype == dtype
    farthest = (1 + case.gamma) * (case.far + 10)
    angle_error = 4 * farthest * torch.finfo(torch.float32).eps
    room = 4 * torch.finfo(dtype).eps + angle_error
    assert (found.double() - expected).abs().max() <= room * expected.abs().max()


def test_float32_angles_are_not_float16_angles() -> None:
    """Position 2,049 and 2,048 are one number in float16, and 2,048.5 and 2,048 in bfloat16."""
    x, _, temporal, inv_freq, _, _ = arguments(Case(batch=1, heads=1, tokens=2), torch.float16)
    x[:, :, 1] = x[:, :, 0]
    one_apart = torch.tensor([[2048, 2049]])
    y = ops.dual_rope(x, one_apart, torch.zeros_like(temporal), inv_freq, 0.0)
    assert (y[:, :, 0] - y[:, :, 1]).abs().max() > 0.5
    half_apart = torch.tensor([[0, 1]])
    y = ops.dual_rope(x, torch.full_like(one_apart, 2048), half_apart, inv_freq, 0.5)
    assert (y[:, :, 0] - y[:, :, 1]).abs().max() > 0.25


def test_a_product_depends_on_differences_alone() -> None:
    """The phase of a logit is (n - n') + gamma (T - T')."""
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn((2, 1, 1, 1, 8), generator=generator, dtype=torch.float64)
    inv_freq = torch.tensor([1.0, 0.3, 0.1, 0.03])

    def product(n: int, temporal: int, other_n: int, other_temporal: int) -> Tensor:
        def turn(x: Tensor, at: int, at_temporal: int) -> Tensor:
            place, frame = torch.tensor([[at]]), torch.tensor([[at_temporal]])
            return ops.dual_rope(x, place, frame, inv_freq, 0.5)

        return (turn(q, n, temporal) * turn(k, other_n, other_temporal)).sum()

    torch.testing.assert_close(product(9, 4, 5, 2), product(19, 14, 15, 12))
    torch.testing.assert_close(product(9, 4, 5, 2), product(10, 2, 5, 2))  # 4 + 0.5 * 2 is 5
    assert (product(9, 4, 5, 2) - product(9, 4, 5, 3)).abs() > 1e-3


def test_rounded_frequencies_are_refused() -> None:
    x, position, temporal, inv_freq, gamma, _ = arguments(Case())
    with pytest.raises(TypeError, match="float16"):
        ops.dual_rope(x, position, temporal, inv_freq.half(), gamma)


def test_inputs_in_any_memory_order() -> None:
    call = arguments(CASES["odd sizes"])
    position = call[1].repeat_interleave(2, dim=1)[:, ::2]
    tokens_first = call[0].transpose(1, 2).contiguous().transpose(1, 2)
    heads_last = call[0].contiguous(memory_format=torch.channels_last)
    for x in (tokens_first, heads_last):
        assert not x.is_contiguous()
        found = ops.dual_rope(x, position, *call[2:])
        assert found.is_contiguous()
        assert torch.equal(found, ops.dual_rope(*call))


@pytest.mark.parametrize("name", ["usual", "an odd channel is left", "one of everything"])
def test_opcheck(name: str) -> None:
    x, *rest = arguments(CASES[name], torch.float32)
    heads_last = x.contiguous(memory_format=torch.channels_last)
    for each in (x, x.clone().requires_grad_(), heads_last):
        torch.library.opcheck(torch.ops.tc.dual_rope.default, (each, *rest))


def test_gradient() -> None:
    x, *rest = arguments(CASES["an odd channel is left"])
    assert torch.autograd.gradcheck(lambda x: ops.dual_rope(x, *rest), x.requires_grad_())


class Rope(torch.nn.Module):
    def forward(self, x: Tensor, position: Tensor, temporal: Tensor, inv_freq: Tensor) -> Tensor:
        return ops.dual_rope(x, position, temporal, inv_freq, 0.5)


def test_export_at_sizes_never_traced() -> None:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    shape = {0: batch, 1: tokens}
    traced = arguments(Case(batch=2, tokens=3))[:4]
    program = torch.export.export(
        Rope(), traced, dynamic_shapes=({0: batch, 2: tokens}, shape, shape, {})
    )
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [
        torch.ops.tc.dual_rope.default
    ]
    for case in (Case(batch=1, tokens=1), Case(batch=5, tokens=17)):
        call = arguments(case)[:4]
        assert torch.equal(program.module()(*call), ops.dual_rope(*call, 0.5))
