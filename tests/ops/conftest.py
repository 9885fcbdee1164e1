# SPDX-License-Identifier: Apache-2.0
"""One thread: the models are so small that handing work out costs fifty times the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Run this folder's tests on one thread, and give the others theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
