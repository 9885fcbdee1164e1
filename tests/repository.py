# SPDX-License-Identifier: Apache-2.0
"""Where the checkout is, for tests that read its files or run its scripts."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = REPOSITORY / "engines" / "targets"
DEMO_CHECKPOINT = REPOSITORY / "checkpoints" / "tc-llava-tiny"
