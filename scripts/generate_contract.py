# SPDX-License-Identifier: Apache-2.0
"""Write the contracts of the custom ops as the C++ header that the bindings are compiled with."""

from __future__ import annotations

from pathlib import Path

from tc_export.contracts.c_header import HEADER_PATH, c_header


def main() -> None:
    path = Path(__file__).resolve().parents[1] / HEADER_PATH
    path.write_text(c_header())
    print(path)


if __name__ == "__main__":
    main()
