# SPDX-License-Identifier: Apache-2.0
"""The two custom ops of domain `tc`: one contract each, read by every other part.

Importing this package registers `torch.ops.tc.*`. See `docs/adding-an-op.md`.
"""

from tc_export.contracts.ops import OpContract, TensorContract
from tc_export.ops.block_causal_attention import BLOCK_CAUSAL_ATTENTION, block_causal_attention
from tc_export.ops.dual_rope import DUAL_ROPE, dual_rope

CONTRACTS = (DUAL_ROPE, BLOCK_CAUSAL_ATTENTION)

__all__ = [
    "BLOCK_CAUSAL_ATTENTION",
    "CONTRACTS",
    "DUAL_ROPE",
    "OpContract",
    "TensorContract",
    "block_causal_attention",
    "dual_rope",
]
