# SPDX-License-Identifier: Apache-2.0
"""Where single tokens alone would fail, they are measured with more draws before they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tc_export.dtypes import DType
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.tensors import check
from tc_export.parity.tensors.judging import Arithmetic
from tc_export.parity.tensors.verdict import Measured


@pytest.mark.parametrize(
    ("tokens_pass", "medians_pass", "expected"),
    [(True, True, [6]), (False, True, [6, 24]), (False, False, [6]), (True, False, [6])],
)
def test_tokens_in_doubt_are_measured_again(
    monkeypatch: pytest.MonkeyPatch, tokens_pass: bool, medians_pass: bool, expected: list[int]
) -> None:
    judged = ([SimpleNamespace(passed=tokens_pass)], [SimpleNamespace(passed=medians_pass)])
    monkeypatch.setattr(check, "judge", lambda measured, rate: judged)
    asked: list[int] = []

    def measure(arithmetic: Arithmetic) -> list[Measured]:
        asked.append(arithmetic.draws)
        return cast("list[Measured]", [arithmetic.draws])

    baseline = cast(LayerwiseModel, None)
    plain = Arithmetic(name="", dtype=DType.FLOAT32, baseline=baseline, draws=6)
    found: Any = check._surely(plain, measure)
    assert asked == expected
    assert found == expected[-1:]
