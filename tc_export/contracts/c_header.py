# SPDX-License-Identifier: Apache-2.0
"""The contracts of the custom ops as a C++ header, which the kernels' bindings are compiled with.

Each op becomes a struct of constants: its name, its inputs, outputs and attributes in order, and
an index for each of them. `scripts/generate_contract.py` writes the header; a test holds the
committed one to what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tc_export.contracts.ops import (
    CONTRACTS,
    DOMAIN,
    FLOAT_TYPES,
    PADDING,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    OpContract,
    TensorContract,
)

HEADER_PATH = "plugins/generated/tc_contract.h"
"""Where the header lies in a source checkout."""

_TEMPLATE = """\
// SPDX-License-Identifier: Apache-2.0
//
// What the custom ops promise, for C++. Generated from tc_export/contracts/ops.py: do not edit, but
// change the contract and run `python scripts/generate_contract.py`.
#ifndef TC_CONTRACT_H
#define TC_CONTRACT_H

#include <array>
#include <cstdint>

#include "tc_kernels.h"

namespace tc::contract {{

inline constexpr const char* kDomain = "{domain}";
inline constexpr const char* kPluginNamespace = "{namespace}";
inline constexpr const char* kPluginVersion = "{version}";

inline constexpr int64_t kPadding = {padding};  // the n, the T and the slot of a padding token

// The types that T may be: an op's floating-point type, which is that of its input 0.
inline constexpr std::array kFloatTypes = {{{float_types}}};

enum class Type {{ {types} }};

// `axes` has a letter for each dimension; the same letter is the same length everywhere in an op.
struct Input {{
  const char* name;
  const char* axes;
  Type type;
}};

// An output has the shape and the type of input `like`, and may be its buffer where `in_place`.
struct Output {{
  const char* name;
  int like;
  bool in_place;
}};

// A float32. `fallback` is its value where it is not given; `positive`: it must be above 0.
struct Attribute {{
  const char* name;
  bool required;
  float fallback;
  bool positive;
}};

{ops}
inline constexpr int kOpCount = {op_count};

}}  // namespace tc::contract

#endif  // TC_CONTRACT_H
"""

_OP = """\
// {summary}
struct {name} {{
  static constexpr const char* kName = "{name}";

  enum {{ {input_indices} }};
  static constexpr std::array<Input, {input_count}> kInputs = {{{{
{inputs}
  }}}};

  enum {{ {output_indices} }};
  static constexpr std::array<Output, {output_count}> kOutputs = {{{{
{outputs}
  }}}};

  enum {{ {attribute_indices} }};
  static constexpr std::array<Attribute, {attribute_count}> kAttributes = {{{{
{attributes}
  }}}};
}};
"""


def c_header(contracts: Sequence[OpContract] = CONTRACTS) -> str:
    """The header's whole text.

    Raises:
        ValueError: a contract has what the bindings cannot express: an axis of more than one
            letter, an output that is like no input, or an input 0 that is not of type T.
    """
    used = {tensor.dtype for op in contracts for tensor in (*op.inputs, *op.outputs)}
    return _TEMPLATE.format(
        domain=DOMAIN,
        namespace=PLUGIN_NAMESPACE,
        version=PLUGIN_VERSION,
        padding=PADDING,
        float_types=", ".join(f"TC_{dtype.upper()}" for dtype in FLOAT_TYPES),
        types=", ".join(["kT", *(_constant(dtype) for dtype in sorted(used - {"T"}))]),
        ops="\n".join(_op(contract) for contract in contracts),
        op_count=len(contracts),
    )


def _op(contract: OpContract) -> str:
    """The struct of one op."""
    if contract.inputs[0].dtype != "T":
        raise ValueError(f"{contract.name}: the first input is not of type T, which it decides")
    return _OP.format(
        name=contract.name,
        summary=contract.summary,
        input_indices=_indices(contract.input_names),
        input_count=len(contract.inputs),
        inputs=_rows(_input(tensor) for tensor in contract.inputs),
        output_indices=_indices(tensor.name for tensor in contract.outputs),
        output_count=len(contract.outputs),
        outputs=_rows(_output(contract, tensor) for tensor in contract.outputs),
        attribute_indices=_indices(contract.attributes),
        attribute_count=len(contract.attributes),
        attributes=_rows(_attribute(contract, name) for name in contract.attributes),
    )


def _input(tensor: TensorContract) -> str:
    if not all(len(axis) == 1 and "A" <= axis <= "Z" for axis in tensor.axes):
        raise ValueError(f"the axes of {tensor.name} are {tensor.axes}, expected one letter each")
    return f'"{tensor.name}", "{"".join(tensor.axes)}", Type::{_constant(tensor.dtype)}'


def _output(contract: OpContract, tensor: TensorContract) -> str:
    like = _constant(contract.input_like(tensor).name)
    return f'"{tensor.name}", {like}, {_boolean(tensor.aliases is not None)}'


def _attribute(contract: OpContract, name: str) -> str:
    default = contract.attributes[name]
    positive = _boolean(name in contract.positive)
    return f'"{name}", {_boolean(default is None)}, {float(default or 0)}f, {positive}'


def _rows(rows: Iterable[str]) -> str:
    return "\n".join(f"      {{{row}}}," for row in rows)


def _indices(names: Iterable[str]) -> str:
    return ", ".join(_constant(name) for name in names)


def _constant(name: str) -> str:
    """`past_key` as a constant of our C++: `kPastKey`."""
    return "k" + "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _boolean(value: bool) -> str:
    return "true" if value else "false"
