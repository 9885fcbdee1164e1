# SPDX-License-Identifier: Apache-2.0
"""`tc_kernels.h` against what mirrors it: the contracts, and ctypes in `tc_export.ops.native`."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from tc_export.contracts.ops import (
    BLOCK_CAUSAL_ATTENTION,
    BLOCK_CAUSAL_ATTENTION_INT8,
    DUAL_ROPE,
    FLOAT_TYPES,
    OpContract,
    TensorContract,
)
from tc_export.ops import native
from tests.plugins.native import PLUGINS, need, run

HEADER = PLUGINS / "include" / "tc_kernels.h"
STRUCTS: dict[str, tuple[type[ctypes.Structure], OpContract]] = {
    "tc_attention_args": (native.AttentionArgs, BLOCK_CAUSAL_ATTENTION),
    "tc_attention_int8_args": (native.AttentionInt8Args, BLOCK_CAUSAL_ATTENTION_INT8),
    "tc_dual_rope_args": (native.DualRopeArgs, DUAL_ROPE),
}
LACKING = ("TC_UNSUPPORTED", "TC_OUT_OF_MEMORY")
DTYPES = {f"TC_{dtype.upper()}": dtype for dtype in FLOAT_TYPES}
C_TYPES = {
    "T": "void",
    "float32": "float",
    "int8": "int8_t",
    "int32": "int32_t",
    "int64": "int64_t",
}


def tensors(contract: OpContract) -> tuple[TensorContract, ...]:
    return (*contract.inputs, *contract.outputs)


@pytest.mark.parametrize("struct", STRUCTS)
def test_pointers_are_the_contracts_tensors_in_order(struct: str) -> None:
    contract = STRUCTS[struct][1]
    found = re.search(rf"typedef struct {{([^}}]*)}} {struct};", HEADER.read_text())
    assert found
    pointers = re.findall(r"(const )?(\w+)\* (\w+); +/\* \[([^]]*)\]", found[1])
    expected = [
        (
            "const " if tensor in contract.inputs else "",
            C_TYPES[tensor.dtype],
            tensor.name,
            ", ".join(tensor.axes),
        )
        for tensor in tensors(contract)
    ]
    assert pointers == expected
    assert re.findall(r"float ([\w, ]+);", found[1]) == [", ".join(contract.attributes)]


@pytest.mark.parametrize("struct", STRUCTS)
def test_ctypes_fields_are_the_contracts_tensors_in_order(struct: str) -> None:
    fields, contract = STRUCTS[struct]
    names = [name for name, kind, *_ in fields._fields_ if kind is ctypes.c_void_p]
    assert names == [tensor.name for tensor in tensors(contract)]
    floats = [name for name, kind, *_ in fields._fields_ if kind is ctypes.c_float]
    assert floats == list(contract.attributes)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Numbers and offsets as a compiler has them, which a small program prints."""
    need("gcc", package="gcc")
    statements = [f'show("{name}", {name});' for name in ("TC_OK", *LACKING, *DTYPES)]
    for struct, (fields, _) in STRUCTS.items():
        statements.append(f'show("{struct}", sizeof({struct}));')
        for name, *_ in fields._fields_:
            statements.append(f'show("{struct}.{name}", offsetof({struct}, {name}));')
            statements.append(f'show("sizeof {struct}.{name}", sizeof((({struct}*)0)->{name}));')
    folder: Path = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        '#include "tc_kernels.h"\n#include <stdio.h>\n'
        'static void show(const char* name, size_t n) { printf("%s=%zu\\n", name, n); }\n'
        "int main(void) {\n" + "\n".join(statements) + "\n}\n"
    )
    program = folder / "layout"
    run("gcc", "-Wall", "-Werror", f"-I{HEADER.parent}", source, "-o", program)
    lines = (line.split("=") for line in run(program).splitlines())
    return {name: int(number) for name, number in lines}


@pytest.mark.parametrize("struct", STRUCTS)
def test_ctypes_lays_a_struct_out_as_the_compiler(compiled: dict[str, int], struct: str) -> None:
    fields = STRUCTS[struct][0]
    assert ctypes.sizeof(fields) == compiled[struct]
    for name, *_ in fields._fields_:
        descriptor = getattr(fields, name)
        assert descriptor.offset == compiled[f"{struct}.{name}"], name
        assert descriptor.size == compiled[f"sizeof {struct}.{name}"], name


def test_numbers_of_types_and_of_statuses(compiled: dict[str, int]) -> None:
    assert {dtype.torch: compiled[name] for name, dtype in DTYPES.items()} == native.DTYPES
    assert compiled["TC_OK"] == native._OK
    assert tuple(compiled[name] for name in LACKING) == native._LACKING
