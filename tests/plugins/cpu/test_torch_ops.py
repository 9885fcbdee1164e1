# SPDX-License-Identifier: Apache-2.0
"""The library as the CPU kernel of the PyTorch ops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tc_export import ops
from tc_export.contracts import ops as contracts
from tc_export.errors import TcExportError, UnsupportedEnvironment, UsageError
from tc_export.native.find import NativeLibrary
from tc_export.ops.native import NativeKernels, register_native_kernels
from tests.plugins.cpu.definition import (
    expected_attention,
    expected_cache,
    expected_rotation,
    of_wrong_shape,
    ones_of,
    random_case,
)
from tests.plugins.cpu.test_attention_int8 import expected_parts, expected_y, int8_cache


@pytest.fixture
def registered(library: NativeLibrary) -> Iterator[NativeKernels]:
    """Register the kernels for one test, and put the reference back."""
    kernels = register_native_kernels(library.handle)
    definitions = (ops.block_causal_attention, ops.block_causal_attention_int8, ops.dual_rope)
    for op in definitions:
        op.set_kernel_enabled("cpu", enabled=True)
    yield kernels
    for op in definitions:
        op.set_kernel_enabled("cpu", enabled=False)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Count the calls of a native kernel."""
    calls: list[object] = []
    native = getattr(NativeKernels, name)

    def call(self: NativeKernels, *arguments: object) -> object:
        calls.append(arguments)
        return native(self, *arguments)

    monkeypatch.setattr(NativeKernels, name, call)
    return calls


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, in another order in memory."""
    spread = tensor.repeat_interleave(2, dim=-1)[..., ::2]
    assert not spread.is_contiguous()
    return spread


def rotation() -> tuple[torch.Tensor, ...]:
    """x [B, H, S, D], position_ids, temporal_ids [B, S] and inv_freq [R]."""
    generator = torch.Generator().manual_seed(3)
    n, t = torch.randint(0, 90, (2, 2, 6), generator=generator)
    return torch.randn(2, 3, 6, 10, generator=generator), n, t, torch.tensor([1.0, 0.3, 0.1])


@pytest.mark.usefixtures("registered")
def test_attention_is_served_and_differentiable(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "block_causal_attention")
    case = random_case(batch=1, heads=(4, 2), tokens=12, rows=12, head_dim=16, past=0, frame=4)
    q = case.q.clone().requires_grad_()
    y, *_ = torch.ops.tc.block_causal_attention(q, *case.inputs()[1:], case.scale)
    assert len(calls) == 1
    assert np.abs(y.detach().double().numpy() - expected_attention(case)).max() <= 2e-6
    y.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.usefixtures("registered")
def test_attention_over_int8_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every type that the kernels store; float64 goes to the reference."""
    calls = counted(monkeypatch, "block_causal_attention_int8")
    case = random_case(batch=1, heads=(4, 2), tokens=12, rows=12, head_dim=16, past=0, frame=4)
    cache = int8_cache(case)
    parts = expected_parts(case, cache)
    op = torch.ops.tc.block_causal_attention_int8
    y, *present = op(*case.inputs()[:5], *cache, case.scale)
    assert len(calls) == 1
    assert np.abs(y.double().numpy() - expected_y(case, parts)).max() <= 2e-6
    assert all(torch.equal(x, part) for x, part in zip(present, parts, strict=True))
    wide = [x.double() if x.is_floating_point() else x for x in (*case.inputs()[:5], *cache)]
    found, *_ = op(*wide, case.scale)
    assert np.abs(found.numpy() - expected_y(case, parts)).max() <= 1e-5
    assert len(calls) == 1


@pytest.mark.usefixtures("registered")
def test_rotation_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "dual_rope")
    x, n, t, inv_freq = rotation()
    for factor in (1.0, 1.5):
        y = torch.ops.tc.dual_rope(x, n, t, inv_freq, 0.4, *([factor] if factor != 1.0 else []))
        expected = expected_rotation(x, n, t, inv_freq, 0.4, factor)
        assert np.abs(y.numpy() - expected).max() <= 2e-6
    assert len(calls) == 2


@pytest.mark.usefixtures("registered")
def test_float64_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are contiguous, as the op says they are, whatever the inputs."""
    calls = [counted(monkeypatch, name) for name in ("dual_rope", "block_causal_attention")]
    x, n, t, inv_freq = rotation()
    y = torch.ops.tc.dual_rope(strided(x.double()), n, t, inv_freq, 0.4, 1.5)
    assert y.is_contiguous()
    assert np.abs(y.numpy() - expected_rotation(x.double(), n, t, inv_freq, 0.4, 1.5)).max() <= 1e-4

    case = random_case(batch=2, heads=(4, 2), tokens=6, rows=6, head_dim=8, past=0, frame=3)
    wide = [x.double() if x.is_floating_point() else x for x in case.inputs()]
    y, key, value = torch.ops.tc.block_causal_attention(*map(strided, wide), case.scale)
    assert np.abs(y.numpy() - expected_attention(case)).max() <= 1e-12
    assert torch.equal(key, expected_cache(wide[5], wide[1], case.slots))
    assert torch.equal(value, expected_cache(wide[6], wide[2], case.slots))
    assert all(output.is_contiguous() for output in (y, key, value))
    assert calls == [[], []]


@pytest.mark.usefixtures("registered")
def test_opcheck() -> None:
    case = random_case(batch=1, heads=(2, 1), tokens=5, rows=5, head_dim=8, past=0)
    torch.library.opcheck(ops.block_causal_attention, (*case.inputs(), case.scale))
    ids = torch.arange(5)[None]
    torch.library.opcheck(ops.dual_rope, (case.q, ids, ids, torch.rand(4), 0.5, 1.0))


def test_inputs_in_any_memory_order_are_left_as_they_are(library: NativeLibrary) -> None:
    kernels = NativeKernels(library.handle)
    case = random_case(batch=2, heads=(4, 2), tokens=6, rows=9, head_dim=8, past=2, frame=3)
    call, turned = case.inputs(), rotation()
    for change in (torch.Tensor.clone, strided):
        given = [change(tensor) for tensor in call]
        y, key, value = kernels.block_causal_attention(*given, case.scale)
        assert np.abs(y.double().numpy() - expected_attention(case)).max() <= 2e-6
        for cache, past, new in ((key, case.past_key, case.k), (value, case.past_value, case.v)):
            wanted = expected_cache(past, new, case.slots)
            torch.testing.assert_close(cache, wanted, rtol=0, atol=0, equal_nan=True)
        also_given = [change(tensor) for tensor in turned]
        y = kernels.dual_rope(*also_given, 0.4)
        assert np.abs(y.numpy() - expected_rotation(*turned, 0.4, 1.0)).max() <= 2e-6
        for after, before in zip((*given, *also_given), (*call, *turned), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_only_a_contiguous_cache_is_written_in_place(library: NativeLibrary) -> None:
    kernels = NativeKernels(library.handle)
    case = random_case(batch=1, heads=(2, 1), tokens=3, rows=5, head_dim=4, past=2)
    *new, key, value = case.inputs()
    for caches in ((strided(key), value), (key, strided(value))):
        with pytest.raises(UsageError, match="must be contiguous"):
            kernels.block_causal_attention(*new, *caches, case.scale, in_place=True)
    written = kernels.block_causal_attention(*new, key, value, case.scale, in_place=True)[1:]
    assert [tensor.data_ptr() for tensor in written] == [key.data_ptr(), value.data_ptr()]


def test_every_tensor_of_another_shape_type_or_place_is_refused(library: NativeLibrary) -> None:
    kernels = NativeKernels(library.handle)
    for contract, op in (
        (contracts.DUAL_ROPE, kernels.dual_rope),
        (contracts.BLOCK_CAUSAL_ATTENTION, kernels.block_causal_attention),
        (contracts.BLOCK_CAUSAL_ATTENTION_INT8, kernels.block_causal_attention_int8),
    ):
        right = ones_of(contract, torch.float32)
        op(*right, 0.5)
        for i, tensor in enumerate(contract.inputs):
            types = [torch.float64 if right[i].is_floating_point() else torch.int16]
            if tensor.name != "x":  # which may be of any type that the kernels store
                types.append(torch.float16)
            wrong = of_wrong_shape(contract, tensor, right[i])
            for changed in (*wrong, *(right[i].to(t) for t in types), right[i].to("meta")):
                with pytest.raises(TcExportError, match=r": \w+ is (torch\..+ expected|on meta)"):
                    op(*right[:i], changed, *right[i + 1 :], 0.5)


def test_caches_that_fit_each_other_must_fit_the_call(library: NativeLibrary) -> None:
    kernels = NativeKernels(library.handle)
    *new, past_key, past_value = ones_of(contracts.BLOCK_CAUSAL_ATTENTION, torch.float32)
    for axis in (0, 3):
        caches = [torch.cat([cache, cache], dim=axis) for cache in (past_key, past_value)]
        with pytest.raises(UsageError, match="past_key is"):
            kernels.block_causal_attention(*new, *caches, 0.5)


def test_what_this_machine_lacks_is_no_wrong_usage(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = NativeKernels(library.handle, isa=99)
    with pytest.raises(UnsupportedEnvironment, match="does not have"):
        unknown.dual_rope(*rotation(), 0.5)
    with pytest.raises(UnsupportedEnvironment, match="does not have"):
        unknown.block_causal_attention(
            *ones_of(contracts.BLOCK_CAUSAL_ATTENTION, torch.float32), 0.5
        )
    monkeypatch.setattr(library.handle, "tc_cpu_dual_rope_on", lambda *arguments: 4)
    with pytest.raises(UnsupportedEnvironment, match="out of memory"):
        NativeKernels(library.handle).dual_rope(*rotation(), 0.5)


def test_wrong_tensors_are_refused(library: NativeLibrary) -> None:
    kernels = NativeKernels(library.handle)
    case = random_case(batch=1, heads=(2, 1), tokens=5, rows=8, head_dim=8, past=0)
    q, k, v, kv_end, slots, *cache = case.inputs()
    with pytest.raises(UsageError, match=r"kv_end is torch.int64 \[1, 5\], expected torch.int32"):
        kernels.block_causal_attention(q, k, v, kv_end.long(), slots, *cache, 1.0)
    with pytest.raises(UsageError, match=r"k is torch.float32 \[1, 2, 5, 8\], expected"):
        kernels.block_causal_attention(q, q, v, kv_end, slots, *cache, 1.0)
    with pytest.raises(UsageError, match=r"cache overflow.*tokens 5, cache_rows 8"):
        kernels.block_causal_attention(q, k, v, kv_end, slots + 4, *cache, 1.0)
    with pytest.raises(UsageError, match="invalid argument"):
        kernels.dual_rope(q, slots, slots, torch.rand(5), 1.0)  # 2 R > D
