# SPDX-License-Identifier: Apache-2.0
"""`tc_cpu_dual_rope` against the definition, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tc_export.ops.dual_rope import dual_rope_reference
from tc_export.ops.native import DTYPES, NativeKernels
from tests.plugins.cpu.definition import expected_rotation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 6, 16, 80, 128])
@pytest.mark.parametrize("rotated", ["all", "part"])
@pytest.mark.parametrize("gamma", [0.0, 0.37])
def test_agrees_with_the_definition(
    kernels: NativeKernels, dtype: torch.dtype, head_dim: int, rotated: str, gamma: float
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    half = head_dim // 2 if rotated == "all" else (head_dim + 3) // 4
    x = torch.randn(2, 3, 70, head_dim, generator=generator).to(dtype)
    n = torch.randint(-1, 40_000, (2, 70), generator=generator)
    t = torch.randint(-1, 20_000, (2, 70), generator=generator)
    inv_freq = 10_000.0 ** -(torch.arange(half) / half)
    y = kernels.dual_rope(x, n, t, inv_freq, gamma, 1.25)
    expected = expected_rotation(x, n, t, inv_freq, gamma, 1.25)
    error = np.abs(y.double().numpy() - expected).max()
    plain = dual_rope_reference(x, n, t, inv_freq, gamma, 1.25).double().numpy()
    plain_error = np.abs(plain - expected).max()
    # The floor is one rounding of a number of size 4, as a sum of two normal ones may be.
    assert error <= 2 * plain_error + 4 * torch.finfo(dtype).eps
    if 2 * half < head_dim:
        assert torch.equal(y[..., 2 * half :], x[..., 2 * half :])


def test_position_zero_changes_nothing(kernels: NativeKernels) -> None:
    x = torch.randn(1, 2, 5, 16)
    zeros = torch.zeros(1, 5, dtype=torch.int64)
    assert torch.equal(kernels.dual_rope(x, zeros, zeros, torch.rand(8), 1.0), x)


def test_angles_of_a_million(kernels: NativeKernels) -> None:
    """Sines are reduced with enough digits wherever float32 still tells positions apart."""
    x = torch.ones(1, 1, 1000, 2)
    n = torch.arange(1_000_000, 1_001_000)[None]
    zeros = torch.zeros_like(n)
    inv_freq = torch.ones(1)
    y = kernels.dual_rope(x, n, zeros, inv_freq, 1.0)
    expected = expected_rotation(x, n, zeros, inv_freq, 1.0, 1.0)
    assert np.abs(y.double().numpy() - expected).max() <= 4e-7
