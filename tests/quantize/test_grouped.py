# SPDX-License-Identifier: Apache-2.0
"""Rounding in groups, held against a loop over groups in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tc_export.checkpoint.four_bits import pack_int4, unpack
from tc_export.dtypes import DType
from tc_export.quantize.grouped import SHRINKINGS, Grouped, round_in_groups, round_to_nvfp4

ENDS = {DType.INT4: (-8, 7), DType.INT8: (-127, 127)}


def rounded_by_hand(
    weight: np.ndarray, ends: tuple[int, int], group: int, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers [K, N] and scales [K / G, N], one group after the other."""
    N, K = weight.shape
    numbers, scales = np.zeros((K, N), np.int64), np.zeros((K // group, N))
    for n in range(N):
        for g in range(K // group):
            part = weight[n, g * group : (g + 1) * group].astype(np.float64)
            least = max(part.max() / ends[1], part.min() / ends[0])  # that cuts nothing off
            exact = torch.tensor(least, dtype=torch.float64).to(torch.float32)
            scale = max(float(exact.to(dtype)), torch.finfo(dtype).tiny)
            scales[g, n] = scale
            numbers[g * group : (g + 1) * group, n] = np.clip(
                np.rint(np.float32(part) / np.float32(scale)), *ends
            )
    return numbers, scales


@pytest.mark.parametrize("dtype", ENDS)
@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("group", [16, 32])
def test_numbers_and_scales_are_those_of_each_group(
    dtype: DType, scales: torch.dtype, group: int
) -> None:
    random = np.random.default_rng(3)
    weight = (random.standard_normal((6, 96)) * random.lognormal(size=(6, 1))).astype(np.float32)
    weight[2] = 0  # a row of zeros
    found = round_in_groups(torch.from_numpy(weight), dtype, group, scales, search=False)
    numbers, factors = rounded_by_hand(weight, ENDS[dtype], group, scales)
    np.testing.assert_array_equal(found.numbers.numpy(), numbers)
    np.testing.assert_array_equal(found.scales.double().numpy(), factors)
    assert (found.scales > 0).all()


def test_a_search_errs_less_and_never_more() -> None:
    random = np.random.default_rng(5)
    weight = torch.from_numpy(random.standard_t(3, (40, 256)).astype(np.float32))

    def errors(search: bool) -> np.ndarray:
        found = round_in_groups(weight, DType.INT4, 64, torch.float16, search=search)
        groups = found.numbers.double().view(4, 64, 40) * found.scales.double()[:, None]
        difference = groups - weight.T.double().view(4, 64, 40)
        return difference.square().sum(dim=1).numpy()

    plain, searched = errors(False), errors(True)
    assert (searched <= plain * (1 + 1e-6)).all()
    assert searched.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("counts", [False, True])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, counts: bool) -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(33, 64, generator=random)
    importance = torch.rand(64, generator=random) if counts else None

    def rounded() -> Grouped:
        return round_in_groups(
            weight, DType.INT4, 32, torch.float16, search=True, importance=importance
        )

    whole = rounded()
    monkeypatch.setattr("tc_export.quantize.grouped.BLOCK_NUMBERS", 64 * 5)
    by_blocks = rounded()
    assert torch.equal(whole.numbers, by_blocks.numbers)
    assert torch.equal(whole.scales, by_blocks.scales)


def test_all_sixteen_numbers_of_four_bits_are_used() -> None:
    """Weights that are just these come back as they were, whichever end is the larger."""
    numbers = torch.arange(-8, 8).repeat(2)
    assert numbers.shape == (32,)
    weight = torch.stack([numbers, -numbers.clamp(min=-7), numbers.clamp(max=3)]) * 0.25
    found = round_in_groups(weight, DType.INT4, 32, torch.float16, search=False)
    assert torch.equal(found.widened(), weight)
    assert torch.equal(found.scales, torch.full((1, 3), 0.25, dtype=torch.float16))
    assert found.numbers.amin() == -8
    assert (found.scales > 0).all()


@pytest.mark.parametrize("dtype", [DType.INT4, DType.NVFP4])
def test_a_search_counts_channels_by_their_importance(dtype: DType) -> None:
    """Of the scales that are tried each group has the one with the least error so counted."""
    random = np.random.default_rng(5)
    weight = torch.from_numpy(random.standard_t(3, (40, 256)).astype(np.float32))
    importance = torch.from_numpy(random.lognormal(sigma=2, size=256).astype(np.float32))
    size = 16 if dtype is DType.NVFP4 else 64

    def errors(importance: torch.Tensor | None, shares: int = 7) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tc_export.quantize.grouped.SHRINKINGS", SHRINKINGS[:shares])
            found = round_in_groups(
                weight, dtype, size, torch.float16, search=True, importance=importance
            )
        lost = (found.widened() - weight).double().square() * counts
        return lost.view(40, -1, size).sum(dim=-1).numpy()

    counts = importance.double()
    counted, alike, whole = errors(importance), errors(None), errors(importance, 1)
    assert (counted <= alike * (1 + 1e-5)).all()
    assert (counted <= whole * (1 + 1e-5)).all()
    assert counted.sum() < 0.95 * alike.sum()


def test_a_weight_too_large_for_its_scale_is_named() -> None:
    weight = torch.ones(2, 32)
    weight[1, 3] = 1e30
    with pytest.raises(OverflowError, match=r"1e\+30"):
        round_in_groups(weight, DType.INT4, 32, torch.float16, search=False)
    assert (
        round_in_groups(weight, DType.INT4, 32, torch.float32, search=False).scales.isfinite().all()
    )


@given(arrays(np.int8, st.integers(0, 40).map(lambda n: 2 * n), elements=st.integers(-8, 7)))
def test_four_bits_are_packed_and_unpacked(numbers: np.ndarray) -> None:
    packed = pack_int4(torch.from_numpy(numbers))
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(numbers) // 2,)
    np.testing.assert_array_equal(unpack(packed, DType.INT4).numpy(), numbers)


def test_the_first_number_lies_in_the_low_half() -> None:
    """As ONNX stores INT4."""
    assert pack_int4(torch.tensor([1, -2])).tolist() == [0xE1]


@pytest.mark.parametrize("search", [False, True])
def test_nvfp4_is_the_nearest_number_times_both_scales(search: bool) -> None:
    """Held against the format as another library has it, number by number."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(5))
    weight[2, 5] = 40.0
    weight[3] = 0
    weight[4] *= 1e-4
    found = round_to_nvfp4(weight, search=search)
    assert found.global_scale is not None
    overall = float(found.global_scale)
    assert overall == pytest.approx(40.0 / (6 * 448))
    held = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scales = found.scales.to(torch.float64).numpy() * overall
    widened = found.widened().double().numpy()
    for n in range(6):
        for g in range(4):
            part = weight[n, 16 * g : 16 * g + 16].double().numpy()
            assert scales[g, n] > 0
            nearest = np.abs(part[:, None] - held * scales[g, n]).min(axis=1)
            got = np.abs(widened[n, 16 * g : 16 * g + 16] - part)
            np.testing.assert_allclose(got, nearest, rtol=1e-5, atol=1e-6)
            if not search:
                exact = abs(part).max() / 6 / overall
                nearest_scale = float(np.float32(max(exact, 2**-9)).astype(ml_dtypes.float8_e4m3fn))
                assert float(found.scales[g, n]) == pytest.approx(nearest_scale, rel=0.07)


def test_a_search_of_scales_errs_no_more_in_nvfp4() -> None:
    weight = torch.randn(40, 128, generator=torch.Generator().manual_seed(6))
    errors = [
        float((round_to_nvfp4(weight, search=search).widened() - weight).square().mean())
        for search in (False, True)
    ]
    assert errors[1] < errors[0]
