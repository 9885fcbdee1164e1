# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttention`: the PyTorch op against float64 loops, its gradient, and its export."""

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
    """Sizes of one call: B, H, K, S, C, D; `start` rows of the cache are filled before it."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    tokens: int = 6
    rows: int = 9
    head_dim: int = 5
    start: int = 0
    frame: int = 3
    padded: int = 0


CASES = {
    "prefill": Case(),
    "a key head a query head": Case(heads=2, kv_heads=2),
    "one key head": Case(heads=5, kv_heads=1, head_dim=3),
    "six heads on three": Case(heads=6, kv_heads=3),
    "a later part": Case(start=3),
    "decode": Case(tokens=1, start=7, frame=1),
    "decode into the last row": Case(tokens=1, start=8, frame=1),
    "one of everything": Case(batch=1, heads=1, kv_heads=1, tokens=1, rows=1, head_dim=1, frame=1),
    "exactly full": Case(rows=6),
    "odd sizes": Case(batch=3, heads=7, kv_heads=7, tokens=11, rows=17, head_dim=13, frame=4),
    "padding": Case(padded=2),
    "all but one is padding": Case(padded=5),
    "nothing but padding": Case(padded=6),
}


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Frames of `frame` tokens; the last sequence of the batch is padded on the left."""
    generator = torch.Generator().manual_seed(9)

    def random(heads: int, rows: int) -> Tensor:
        shape = (case.batch, heads, rows, case.head_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    slots = case.start + torch.arange(case.tokens).expand(case.batch, -1).clone()
    slots[-1] = torch.cat((torch.full((case.padded,), -1), slots[-1, : case.tokens - case.padded]))
    kv_end = ((slots // case.frame + 1) * case.frame).clamp(max=case.start + case.tokens)
    kv_end = kv_end.where(slots >= 0, 0).to(torch.int32)
    scale = case.head_dim**-0.5
    q, k, v = (random(heads, case.tokens) for heads in (case.heads, case.kv_heads, case.kv_heads))
    past = (random(case.kv_heads, case.rows) for _ in range(2))
    return q, k, v, kv_end, slots, *past, scale


def expected_of(call: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, kv_end, slots, past_key, past_value = (tensor.tolist() for tensor in call[:-1])
    keys = brute_force.write_cache(past_key, k, slots)
    values = brute_force.write_cache(past_value, v, slots)
    y = brute_force.attention(q, keys, values, kv_end, call[-1])
    key, value, out = (torch.tensor(each, dtype=torch.float64) for each in (keys, values, y))
    return out, key, value


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], case: Case) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    real_rows = case.rows - int(case.padded > 0)  # padding may be written to the last row
    for cache, expected_cache in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(cache[:, :, :real_rows], expected_cache[:, :, :real_rows])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_loops(case: Case) -> None:
    call = arguments(case)
    assert_close(ops.block_causal_attention(*call), expected_of(call), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_narrow_types(case: Case, dtype: torch.dtype) -> None:
    """A few roundings of the largest value; scores are of order one."""
    call = arguments(case, dtype)
    found, expected = ops.block_causal_attention(*call), expected_of(call)
    room = 8 * torch.finfo(dtype).eps * float(call[2].abs().max().maximum(call[6].abs().max()))
    assert all(output.dtype == dtype for output in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0.0, atol=room)


def test_padding_gives_zeros() -> None:
    call = arguments(CASES["padding"])
    y, _, _ = ops.block_causal_attention(*call)
    padding = call[4] == -1
    assert padding.any()
    assert (y.transpose(1, 2)[padding] == 0).all()
    assert (y.transpose(1, 2)[~padding] != 0).all()


def test_more_than_the_cache_is_the_whole_cache() -> None:
    q, k, v, kv_end, *rest = arguments(Case(rows=6))
    beyond = ops.block_causal_attention(q, k, v, torch.full_like(kv_end, 99), *rest)
    every = ops.block_causal_attention(q, k, v, torch.full_like(kv_end, 6), *rest)
    assert torch.equal(beyond[0], every[0])


def test_a_query_sees_no_row_at_or_past_its_end() -> None:
    """Row kv_end - 1 changes the result; row kv_end, however large, does not."""
    *inputs, past_key, past_value, scale = arguments(Case(tokens=1, start=8, frame=1))
    inputs[3] = torch.tensor([[4], [7]], dtype=torch.int32)
    usual = ops.block_causal_attention(*inputs, past_key, past_value, scale)[0]
    for b, end in enumerate((4, 7)):
        for row, matters in ((end - 1, True), (end, False)):
            key, value = past_key.clone(), past_value.clone()
            key[b, :, row], value[b, :, row] = 30.0, 1e6
            changed = ops.block_causal_attention(*inputs, key, value, scale)[0]
            assert torch.equal(changed, usual) is not matters


def test_the_past_is_not_changed() -> None:
    call = arguments(Case(start=3))
    before = [tensor.clone() for tensor in call[:-1]]
    ops.block_causal_attention(*call)
    assert all(torch.equal(a, b) for a, b in zip(before, call[:-1], strict=True))


def test_inputs_in_any_memory_order() -> None:
    call = arguments(CASES["odd sizes"])
    strided = [
        tensor.transpose(1, -1).contiguous().transpose(1, -1)
        if tensor.dim() == 4
        else tensor.t().contiguous().t()
        for tensor in call[:-1]
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = ops.block_causal_attention(*strided, call[-1])
    assert all(output.is_contiguous() for output in found)
    assert_close(found, expected_of(call), CASES["odd sizes"])


@pytest.mark.parametrize("name", ["decode", "padding"])
def test_opcheck(name: str) -> None:
    call = arguments(CASES[name], torch.float32)
    with_gradient = [a.clone().requires_grad_() if i < 3 else a for i, a in enumerate(call[:-1])]
    for inputs in (call[:-1], with_gradient):
        torch.library.opcheck(
            torch.ops.tc.block_causal_attention.default, (*inputs, call[-1]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("wanted", [(0, 1, 2, 5, 6), (0,), (2,), (1, 6)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"start": 2}, {"padded": 1}], ids=str)
def test_gradient(changes: dict[str, int], wanted: tuple[int, ...]) -> None:
    """Through y and through both caches, for every input or for some."""
    call = list(arguments(Case(tokens=3, rows=6, head_dim=2, frame=2, **changes)))
    for i in wanted:
        call[i].requires_grad_()

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = list(call)
        for i, tensor in zip(wanted, tensors, strict=True):
            inputs[i] = tensor
        y, key, value = ops.block_causal_attention(*inputs)
        return y, key[:, :, :-1], value[:, :, :-1]  # the last row is padding's

    assert torch.autograd.gradcheck(function, [call[i] for i in wanted])


class Attention(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = ops.block_causal_attention(*tensors, 0.4)
        return outputs


def test_export_at_sizes_never_traced() -> None:
    batch, tokens, rows = (torch.export.Dim(name) for name in ("batch", "tokens", "rows"))
    new, cache, ids = {0: batch, 2: tokens}, {0: batch, 2: rows}, {0: batch, 1: tokens}
    program = torch.export.export(
        Attention(),
        arguments(Case())[:-1],
        dynamic_shapes=((new, new, new, ids, ids, cache, cache),),
    )
    assert torch.ops.tc.block_causal_attention.default in [
        node.target for node in program.graph.nodes
    ]
    for case in (
        Case(batch=1, tokens=1, start=7, frame=1),
        Case(batch=3, tokens=11, rows=17, frame=4),
        Case(tokens=5, rows=5),
    ):
        call = arguments(case)[:-1]
        assert_close(program.module()(*call), expected_of((*call, 0.4)), case)
