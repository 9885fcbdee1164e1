# SPDX-License-Identifier: Apache-2.0
"""Placeholder entry point, replaced by the commands in this session."""


def main() -> None:
    """Entry point of `tc-export`."""
