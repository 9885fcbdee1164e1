# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that the libraries themselves wrote, and the modules that had them write.

See README.md there.
"""

from pathlib import Path

FILES = Path(__file__).parent / "files"
"""A folder for each scheme of a library."""
