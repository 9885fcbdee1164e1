# SPDX-License-Identifier: Apache-2.0
"""The library as the CPU kernel of the PyTorch ops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tc_export import ops
from tc_export.engine.native_library import NativeLibrary
from tc_export.errors import UsageError
from tc_export.ops.native import NativeKernels, register_native_kernels
from tests.plugins.cpu.definition import expected_attention, random_case


@pytest.fixture
def registered(library: NativeLibrary) -> Iterator[NativeKernels]:
    """Register the kernels for one test, and put the reference back."""
    kernels = register_native_kernels(library.handle)
    definitions = (ops.block_causal_attention, ops.dual_rope)
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
def test_float64_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "dual_rope")
    ids = torch.arange(6)[None]
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(1, 1, 6, 8, dtype=dtype)
        assert torch.ops.tc.dual_rope(x, ids, ids, torch.ones(4), 1.0, 1.0).dtype == dtype
    assert len(calls) == 1


@pytest.mark.usefixtures("registered")
def test_opcheck() -> None:
    case = random_case(batch=1, heads=(2, 1), tokens=5, rows=5, head_dim=8, past=0)
    torch.library.opcheck(ops.block_causal_attention, (*case.inputs(), case.scale))
    ids = torch.arange(5)[None]
    torch.library.opcheck(ops.dual_rope, (case.q, ids, ids, torch.rand(4), 0.5, 1.0))


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
