# SPDX-License-Identifier: Apache-2.0
"""Numbers that JSON cannot write, wherever they stand in a report."""

from __future__ import annotations

import json
from math import inf, nan

from tc_export.parity.reporting import spell_infinite


def test_what_is_not_finite_becomes_a_string_at_any_depth() -> None:
    document = {"a": nan, "b": [1.5, -inf], "c": {"d": (inf, 2, "inf", None, True)}}
    spelled = spell_infinite(document)
    assert spelled == {"a": "nan", "b": [1.5, "-inf"], "c": {"d": ["inf", 2, "inf", None, True]}}
    assert json.loads(json.dumps(spelled, allow_nan=False)) == spelled
