# SPDX-License-Identifier: Apache-2.0
"""A pass: `Attention` states only what differs from the defaults.

1. `is_causal` of 0, `qk_matmul_output_mode` of 0 and `softcap` of 0 are left out: they are what an
   `Attention` without them means.

TensorRT's parser, from 10.14 on, refuses some of these attributes whatever their value.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

_DEFAULTS = {"is_causal": 0, "qk_matmul_output_mode": 0, "softcap": 0.0}


def drop_attention_defaults(model: ir.Model) -> Counter[str]:
    """Leave out attributes that say nothing; return how many nodes had some."""
    changed: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type == "Attention" and not node.domain:
            idle = [name for name in _DEFAULTS if _is_default(node, name)]
            for name in idle:
                del node.attributes[name]
            changed.update(["Attention"] if idle else [])
    return changed


def _is_default(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.value == _DEFAULTS[name]
