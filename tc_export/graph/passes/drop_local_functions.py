# SPDX-License-Identifier: Apache-2.0
"""A pass: ops that a plugin serves come without the bodies that they could have instead.

1. The model-local functions of our domain are left out. Their calls stay, for the plugins.

Before TensorRT 10.7 the parser would inline such a function, and never ask for a plugin.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from tc_export.contracts.ops import DOMAIN


def drop_local_functions(model: ir.Model) -> Counter[str]:
    """Leave out the bodies of our ops; return how many, by op."""
    dropped = [identifier for identifier in model.functions if identifier[0] == DOMAIN]
    for identifier in dropped:
        del model.functions[identifier]
    return Counter(name for _, name, _ in dropped)
