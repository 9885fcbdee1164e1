# SPDX-License-Identifier: Apache-2.0
"""What the compiled CUDA kernels say of themselves, with no GPU at hand.

Compiles the kernels for each SM, reads registers and spills from ptxas and the main loop from the
machine code, and works out how many warps an SM can hold. For a stated workload it predicts the
least time that each target's arithmetic rate and memory bandwidth allow: a bound, not a
measurement. `--json` prints rows; `--write` puts the tables into docs/kernels.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kernel_roofline import (
    KV_HEADS,
    LIMITS,
    Q_HEADS,
    TOKENS,
    Roofline,
    cuda_targets,
    is_doubtful,
    occupancy,
    roofline,
    work_of,
)

from tc_export.errors import TcExportError, UnsupportedEnvironment

REPOSITORY = Path(__file__).resolve().parents[1]
KERNELS = REPOSITORY / "plugins" / "kernels"
SOURCES = ("prefill.cu", "decode.cu", "rotate_and_store.cu", "store_int8.cu")
DISASSEMBLER = ("nvidia-cuda-cuobjdump==13.5.37", "nvidia-cuda-nvdisasm==13.5.37")
KINDS = ("prefill_attention", "decode_attention")
PAGE = REPOSITORY / "docs" / "kernels.md"


def run(*command: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; UnsupportedEnvironment where it fails."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise UnsupportedEnvironment(
            f"{words[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done


def find_nvcc() -> str:
    """The CUDA compiler."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise UnsupportedEnvironment(
            "nvcc is not on PATH", hint="install CUDA's compiler, 13.0 or later"
        )
    return nvcc


def find_disassembler() -> Path:
    """The folder of cuobjdump and nvdisasm: that of PATH, else fetched once from the registry."""
    found = shutil.which("cuobjdump"), shutil.which("nvdisasm")
    if found[0] and found[1]:
        return Path(found[0]).parent
    folder = REPOSITORY / ".cache" / "cuda-disassembler"
    tools = folder / "nvidia" / "cu13" / "bin"
    if not (tools / "nvdisasm").exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
        run(*pip, "--target", folder, *DISASSEMBLER)
    return tools


def compile_all(sms: list[int]) -> dict[str, Path]:
    """Fat binary and ptxas's words of each source, cached by the hash of all that makes them."""
    nvcc = find_nvcc()
    includes = (f"-I{KERNELS / 'ptx'}", f"-I{KERNELS}", f"-I{KERNELS.parent / 'include'}")
    code = ",".join(f"sm_{sm}" for sm in sms)
    flags = ("-std=c++17", "-O3", "-Xptxas=-v", f"-gencode=arch=compute_80,code=[{code}]")
    digest = hashlib.sha256(" ".join((run(nvcc, "--version").stdout, *flags)).encode())
    headers = [*KERNELS.rglob("*.cuh"), *(KERNELS.parent / "include").glob("*.h")]
    for path in (*(KERNELS / source for source in SOURCES), *sorted(headers)):
        digest.update(path.read_bytes())
    folder = REPOSITORY / "build" / "kernel-report" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    binaries = {}
    for source in SOURCES:
        binary = folder / f"{source}.fatbin"
        if not binary.exists():
            partial = binary.with_suffix(f".{os.getpid()}")
            done = run(nvcc, *flags, *includes, "-fatbin", KERNELS / source, "-o", partial)
            binary.with_suffix(".ptxas").write_text(done.stderr)
            partial.rename(binary)
        binaries[source] = binary
    return binaries


def read_shapes(folder: Path) -> dict[tuple[str, int, bool], dict[str, int]]:
    """Threads, shared memory and tiles of each attention kernel, from the kernels' headers.

    By name, head size, and whether the cache is in int8.
    """
    program = folder / "print_shapes"
    includes = (f"-I{KERNELS.parent / 'emulator'}", f"-I{KERNELS}", f"-I{KERNELS.parent}/include")
    run("g++", "-std=c++17", "-w", *includes, KERNELS / "print_shapes.cpp", "-o", program)
    sizes = (str(size) for size in (Q_HEADS, KV_HEADS, TOKENS))
    rows = json.loads(run(program, *sizes).stdout)
    return {(row.pop("kernel"), row["size"], row.pop("in_int8")): row for row in rows}


MANGLED = re.compile(
    r"_ZN2tc\d+(?P<name>[a-z_]+?(?:_int8)?)I(?:NS_\d+)?(?P<type>Half|BFloat16|f)E?"
    r"(?:S\d_|(?P<int8>a))?(?:Li(?P<size>\d+))?E"
)
TYPE_NAMES = {"Half": "float16", "BFloat16": "bfloat16", "f": "float32"}
PTXAS = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<sm>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
INSTRUCTION = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>[^;]+);")
BRANCH = re.compile(r"\bBRA\S*(?:\s+\S+,)?\s+(?:`\(\S+\)|(?P<target>0x[0-9a-f]+))")


def main_loop_tensor_instructions(code: str) -> int:
    """Tensor-core instructions in the smallest loop that holds most of them."""
    lines = [(int(m["address"], 16), m["text"]) for m in INSTRUCTION.finditer(code)]
    tensor = [address for address, text in lines if "HMMA" in text]
    loops = []
    for address, text in lines:
        branch = BRANCH.search(text)
        if branch and branch["target"] and (start := int(branch["target"], 16)) < address:
            inside = sum(start <= at <= address for at in tensor)
            loops.append((inside, start - address))
    return max(loops)[0] if loops else 0


def machine_code(binary: Path, sm: int, tools: Path) -> dict[str, str]:
    """The disassembly of each function."""
    text = run(tools / "cuobjdump", "-sass", "-arch", f"sm_{sm}", binary, path=tools).stdout
    parts = re.split(r"Function : (\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel on one SM."""

    kernel: str
    sm: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_instructions: int
    occupancy: float
    roofline: Roofline


def make_rows(sms: list[int]) -> list[Row]:
    """All kernels on all SMs."""
    binaries, tools, rows = compile_all(sms), find_disassembler(), []
    shapes = read_shapes(next(iter(binaries.values())).parent)
    for binary in binaries.values():
        code = {sm: machine_code(binary, sm, tools) for sm in sms}
        for found in PTXAS.finditer(binary.with_suffix(".ptxas").read_text()):
            name = MANGLED.match(found["symbol"])
            if name is None:
                raise TcExportError(f"a kernel of an unknown name: {found['symbol']}")
            sm, size, registers = int(found["sm"]), int(name["size"] or 0), int(found["registers"])
            in_int8 = name["int8"] is not None
            shape = shapes.get((name["name"], size, in_int8))
            element_bytes = 4 if name["type"] == "f" else 2
            work = work_of(name["name"], size, shape, element_bytes=element_bytes, in_int8=in_int8)
            arguments = [TYPE_NAMES[name["type"]], "int8" if in_int8 else None, name["size"]]
            threads, shared = (shape["threads"], shape["shared_bytes"]) if shape else (256, 0)
            rows.append(
                Row(
                    kernel=f"{name['name']}<{', '.join(filter(None, arguments))}>",
                    sm=sm,
                    registers=registers,
                    spill_bytes=int(found["stores"]) + int(found["loads"]),
                    shared_bytes=shared,
                    tensor_core_instructions=main_loop_tensor_instructions(
                        code[sm][found["symbol"]]
                    ),
                    occupancy=occupancy(LIMITS[sm], threads, registers, shared),
                    roofline=roofline(sm, work),
                )
            )
    return rows


def code_table(rows: list[Row]) -> list[str]:
    """Registers and occupancy by kernel and SM. The two 16-bit types hardly differ."""
    sms = sorted({row.sm for row in rows})
    lines = [
        f"| kernel | shared KiB | tensor-core instructions | {' | '.join(map(str, sms))} |",
        "|---" * (len(sms) + 3) + "|",
    ]
    for kernel in dict.fromkeys(row.kernel for row in rows if "bfloat16" not in row.kernel):
        by_sm = {row.sm: row for row in rows if row.kernel == kernel}
        first = by_sm[sms[0]]
        cells = (f"{by_sm[sm].registers}, {by_sm[sm].occupancy:.0%}" for sm in sms)
        shared = f"{first.shared_bytes / 1024:.1f}"
        tensor = first.tensor_core_instructions
        lines.append(f"| `{kernel}` | {shared} | {tensor} | {' | '.join(cells)} |")
    return lines


def work_table(rows: list[Row]) -> list[str]:
    """Operations and bytes of each kernel, which are the same on every SM."""
    lines = [
        "| kernel | operations, millions | bytes, millions | operations a byte |",
        "|---" * 4 + "|",
    ]
    kernels = {row.kernel: row.roofline for row in rows if "bfloat16" not in row.kernel}
    for kernel, work in kernels.items():
        operations, moved = work.operations / 1e6, work.bytes / 1e6
        lines.append(
            f"| `{kernel}` | {operations:,.1f} | {moved:,.2f} | {operations / moved:,.1f} |"
        )
    return lines


def roofline_table(rows: list[Row]) -> list[str]:
    """Least microseconds by target and kernel."""
    kernels = [f"{kind}<float16, {d}>" for kind in KINDS for d in (64, 128, 256)]
    kernels.append("rotate_and_store<float16, 8>")
    names = " | ".join(f"`{kernel}`" for kernel in kernels)
    lines = [f"| target | SM | {names} |", "|---" * (len(kernels) + 2) + "|"]
    for target in cuda_targets():
        found = {row.kernel: row.roofline for row in rows if row.sm == target.sm}
        cells = []
        for kernel in kernels:
            bound = next(b for b in found[kernel].bounds if b.target == target.name)
            digits = 0 if bound.least_us >= 100 else 1
            cells.append(f"{bound.least_us:,.{digits}f} {bound.bound[0]}")
        doubt = "?" if is_doubtful(target) else ""
        lines.append(f"| {target.name}{doubt} | {target.sm} | {' | '.join(cells)} |")
    return lines


def write_page(rows: list[Row]) -> None:
    """Replace what stands between the page's markers."""
    text = PAGE.read_text()
    tables = {"code": code_table, "work": work_table, "roofline": roofline_table}
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = before + "\n".join((begin, *table(rows), end)) + rest.split(end)[1]
    PAGE.write_text(text)


def main() -> int:
    """Print the report, or write its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    parser.add_argument("--sm", type=int, nargs="+", default=list(LIMITS), choices=list(LIMITS))
    arguments = parser.parse_args()
    try:
        rows = make_rows(arguments.sm)
    except TcExportError as error:
        print(f"error: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    if arguments.write:
        write_page(rows)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
