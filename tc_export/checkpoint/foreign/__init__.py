# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that another library has quantised: read as they are, and never quantised again.

A file a library: what its configuration says, the table of its names, and how its tensors become
numbers and scales. `packing` is what they have in common, `unpacked` what they all come to,
`weight` one matrix that lies on the disk so; `find` says which library it was.
"""

from tc_export.checkpoint.foreign.find import QUANT_CONFIG, QUANT_METHODS, find_packing
from tc_export.checkpoint.foreign.packing import Packing
from tc_export.checkpoint.foreign.weight import PackedWeight, join_packed

__all__ = [
    "QUANT_CONFIG",
    "QUANT_METHODS",
    "PackedWeight",
    "Packing",
    "find_packing",
    "join_packed",
]
