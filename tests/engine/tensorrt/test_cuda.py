# SPDX-License-Identifier: Apache-2.0
"""Which GPU is here, and the bindings that drive it."""

from __future__ import annotations

import sys

import pytest

from tc_export.engine.tensorrt import cuda
from tc_export.errors import UnsupportedEnvironment
from tests.engine.tensorrt.fake_cuda import FakeCuda, FakeDriver


@pytest.mark.parametrize("sm", [87, 120])
def test_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    monkeypatch.setattr(cuda, "open_driver", lambda: FakeDriver(FakeCuda(sm=sm)))
    assert cuda.compute_capability() == sm


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "open_driver", lambda: FakeDriver(FakeCuda(devices=0)))
    with pytest.raises(UnsupportedEnvironment, match=r"finds none \(CUDA error 100\)") as raised:
        cuda.compute_capability()
    assert "tc-export doctor" in str(raised.value.hint)


def test_bindings_of_a_newer_cuda_than_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there, and a GPU too: what is wrong is said before anything runs."""
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, cuda.BINDINGS, fake)
    assert cuda.open_cuda() is fake  # type: ignore[comparison-overlap]
    fake.driver_is_old = True
    with pytest.raises(UnsupportedEnvironment, match="cudaErrorInsufficientDriver"):
        cuda.open_cuda()
