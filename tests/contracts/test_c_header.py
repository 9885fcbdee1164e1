# SPDX-License-Identifier: Apache-2.0
"""The contracts as the C++ side reads them: the committed header, and what it cannot say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tc_export.contracts.c_header import HEADER_PATH, c_header
from tc_export.contracts.ops import CONTRACTS, DUAL_ROPE, OpContract, TensorContract
from tests.repository import REPOSITORY

X = TensorContract(name="x", axes=("B", "S"), dtype="T", meaning="input")
ROWS = TensorContract(name="past_rows", axes=("B", "S"), dtype="T", meaning="input")
COUNT = TensorContract(name="count", axes=("B",), dtype="int32", meaning="input")
EXAMPLE = OpContract(
    name="TcExample",
    summary="Does nothing.",
    inputs=(X, COUNT, ROWS),
    outputs=(replace(X, name="y"), replace(ROWS, name="rows", aliases="past_rows")),
    attributes={"epsilon": 1e-5, "half": 0.5, "factor": None},
    positive=("half",),
)


def test_the_committed_header_is_that_of_the_contracts() -> None:
    committed = (REPOSITORY / HEADER_PATH).read_text()
    assert committed == c_header(), (
        f"{HEADER_PATH} is not what the contracts say: run `python scripts/generate_contract.py`"
    )


def test_an_op_in_all_its_parts() -> None:
    struct = c_header([EXAMPLE]).split("// Does nothing.\n")[1].split("inline constexpr int")[0]
    assert struct.strip().splitlines() == [
        "struct TcExample {",
        '  static constexpr const char* kName = "TcExample";',
        "",
        "  enum { kX, kCount, kPastRows };",
        "  static constexpr std::array<Input, 3> kInputs = {{",
        '      {"x", "BS", Type::kT},',
        '      {"count", "B", Type::kInt32},',
        '      {"past_rows", "BS", Type::kT},',
        "  }};",
        "",
        "  enum { kY, kRows };",
        "  static constexpr std::array<Output, 2> kOutputs = {{",
        '      {"y", kX, false},',
        '      {"rows", kPastRows, true},',
        "  }};",
        "",
        "  enum { kEpsilon, kHalf, kFactor };",
        "  static constexpr std::array<Attribute, 3> kAttributes = {{",
        '      {"epsilon", false, 1e-05f, false},',
        '      {"half", false, 0.5f, true},',
        '      {"factor", true, 0.0f, false},',
        "  }};",
        "};",
    ]


def test_what_all_ops_share() -> None:
    text = c_header()
    assert re.findall(r"^struct (Tc\w+) ", text, re.MULTILINE) == [op.name for op in CONTRACTS]
    for line in (
        'kDomain = "tc";',
        'kPluginNamespace = "tc";',
        'kPluginVersion = "1";',
        "kPadding = -1;",
        "kFloatTypes = {TC_FLOAT32, TC_FLOAT16, TC_BFLOAT16};",
        "enum class Type { kT, kFloat32, kInt32, kInt64, kInt8 };",
        "kOpCount = 3;",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (replace(EXAMPLE, inputs=(replace(X, axes=("rows", "S")),)), "one letter"),
        (replace(EXAMPLE, inputs=(COUNT, X)), "not of type T"),
        (replace(EXAMPLE, outputs=(replace(X, name="y", axes=("S", "B")),)), "no input has"),
        (replace(EXAMPLE, outputs=(replace(COUNT, name="y", dtype="int64"),)), "no input has"),
        (replace(EXAMPLE, outputs=(replace(X, name="y", aliases="count"),)), "no input has"),
    ],
)
def test_what_the_bindings_cannot_express_is_an_error(contract: OpContract, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        c_header([contract])


def test_positive_attributes_are_attributes() -> None:
    for contract in CONTRACTS:
        assert set(contract.positive) <= set(contract.attributes)
    assert DUAL_ROPE.positive == ("attention_factor",)  # gamma may be 0 or negative
