# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CUDA's nvcc, strict about its arguments: it notes its calls and makes a file.

`settings.json` beside this file is that of the stand-in trtexec: its `fault` may be one of nvcc's.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import NoReturn

HERE = Path(sys.argv[0]).parent
FAULT: str = json.loads((HERE / "settings.json").read_text())["fault"]
FLAGS = {
    "-E",
    "-w",
    "-shared",
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-gencode=arch=compute_80,code=sm_87",
}
MACHINES = {"x86_64": 0x3E, "aarch64": 0xB7}


def fail(message: str) -> NoReturn:
    print(f"nvcc error   : {message}", file=sys.stderr)
    sys.exit(1)


def parse(arguments: list[str]) -> tuple[dict[str, str], list[Path]]:
    """The options with a value, and the files."""
    values, files = {}, []
    words = iter(arguments)
    for word in words:
        if word in ("-o", "-cudart"):
            values[word] = next(words)
        elif word.startswith(("-Xcompiler=", "-Xlinker=")):
            values[word.partition("=")[0]] = word.partition("=")[2]
        elif word.startswith("-I"):
            if not Path(word[2:]).is_dir():
                fail(f"no folder {word[2:]}")
        elif not word.startswith("-"):
            files.append(Path(word))
        elif word not in FLAGS:
            fail(f"Unknown option '{word}'")
    if missing := [str(file) for file in files if not file.is_file()]:
        fail(f"no files {missing}")
    return values, files


def link(output: Path, files: list[Path]) -> None:
    """A shared library's header, and the hash of what it was made from."""
    kinds = {file.suffix for file in files}
    if kinds != {".cu", ".cpp"} or "-fPIC" not in VALUES["-Xcompiler"]:
        fail(f"no plugin library of {kinds}")
    if FAULT == "nvcc hangs":
        output.write_text("half a libr")
        (HERE / "hanging").touch()
        time.sleep(60)
    if FAULT == "nvcc fails":
        fail("a star is missing")
    header = b"\x7fELF" + bytes(14) + MACHINES[platform.machine()].to_bytes(2, "little")
    content = b"".join(file.read_bytes() for file in files)
    output.write_bytes(header + hashlib.sha256(content).digest())


with (HERE / "nvcc calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
VALUES, FILES = parse(sys.argv[1:])
if "-E" in sys.argv:
    if FAULT == "no headers":
        fail("NvInferRuntime.h: No such file or directory")
else:
    link(Path(VALUES["-o"]), FILES)
