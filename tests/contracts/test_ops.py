# SPDX-License-Identifier: Apache-2.0
"""The contracts say what the PyTorch ops do: names, order, axes, types and defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tc_export.contracts import ops as contracts
from tc_export.contracts.ops import OpContract
from tests.ops import (
    test_block_causal_attention,
    test_block_causal_attention_int8,
    test_dual_rope,
)

CALLS: dict[str, tuple[OpContract, Any, tuple[Any, ...]]] = {
    "TcDualRope": (
        contracts.DUAL_ROPE,
        torch.ops.tc.dual_rope.default,
        test_dual_rope.arguments(test_dual_rope.CASES["odd sizes"], torch.float32),
    ),
    "TcBlockCausalAttention": (
        contracts.BLOCK_CAUSAL_ATTENTION,
        torch.ops.tc.block_causal_attention.default,
        test_block_causal_attention.arguments(
            test_block_causal_attention.CASES["six heads on three"], torch.float32
        ),
    ),
    "TcBlockCausalAttentionInt8": (
        contracts.BLOCK_CAUSAL_ATTENTION_INT8,
        torch.ops.tc.block_causal_attention_int8.default,
        test_block_causal_attention_int8.arguments(
            test_block_causal_attention.CASES["six heads on three"], torch.float32
        ),
    ),
}


def test_every_contract_is_here() -> None:
    assert {contract.name for contract in contracts.CONTRACTS} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_the_inputs_then_the_attributes(name: str) -> None:
    contract, op, _ = CALLS[name]
    arguments = op._schema.arguments
    assert [a.name for a in arguments] == [*contract.input_names, *contract.attributes]
    defaults = {a.name: a.default_value for a in arguments[len(contract.inputs) :]}
    assert defaults == contract.attributes


@pytest.mark.parametrize("fake", [False, True], ids=["run", "fake"])
@pytest.mark.parametrize("name", CALLS)
def test_axes_and_types(name: str, fake: bool) -> None:
    contract, op, call = CALLS[name]
    if fake:
        with FakeTensorMode() as mode:
            outputs = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in call))
    else:
        outputs = op(*call)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    tensors = [*call[: len(contract.inputs)], *outputs]
    lengths: dict[str, int] = {}
    for declared, tensor in zip((*contract.inputs, *contract.outputs), tensors, strict=True):
        assert tensor.dim() == len(declared.axes), declared.name
        for axis, length in zip(declared.axes, tensor.shape, strict=True):
            assert lengths.setdefault(axis, length) == length, (declared.name, axis)
        dtype = "float32" if declared.dtype == "T" else declared.dtype
        assert str(tensor.dtype) == f"torch.{dtype}", declared.name
        assert tensor.is_contiguous(), declared.name
