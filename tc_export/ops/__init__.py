# SPDX-License-Identifier: Apache-2.0
"""The custom ops of domain `tc` in PyTorch, and their bodies in standard ONNX operators.

Importing this package registers `torch.ops.tc.*`. What an op promises stands in
`tc_export.contracts.ops`. See `docs/adding-an-op.md`.
"""

from tc_export.ops.block_causal_attention import block_causal_attention
from tc_export.ops.block_causal_attention_int8 import block_causal_attention_int8
from tc_export.ops.dual_rope import dual_rope

__all__ = ["block_causal_attention", "block_causal_attention_int8", "dual_rope"]
