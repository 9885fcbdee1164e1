# SPDX-License-Identifier: Apache-2.0
"""One thread, because handing out work this small costs fifty times the work; and no deadlines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no-deadline")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Run this folder's tests on one thread, and give the others theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
