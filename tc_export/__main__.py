# SPDX-License-Identifier: Apache-2.0
"""`python -m tc_export` is `tc-export`."""

from tc_export.cli.main import main

main()
