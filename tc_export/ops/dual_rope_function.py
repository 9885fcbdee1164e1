# SPDX-License-Identifier: Apache-2.0
"""`TcDualRope` in standard ONNX operators: the body that any runtime can run without our library.

Axes: B batch, H heads, S tokens of this call, D head size, R half of the rotated channels.
"""

from __future__ import annotations

from onnxscript import FLOAT, opset23, script
from onnxscript.values import Opset

from tc_export.contracts.ops import DOMAIN, OPSET_VERSION, PLUGIN_NAMESPACE, PLUGIN_VERSION

tc = Opset(DOMAIN, OPSET_VERSION)
op = opset23


@script(tc, default_opset=op)
def TcDualRope(
    x,
    position_ids,
    temporal_ids,
    inv_freq,
    gamma: float,
    attention_factor: float = 1.0,
    plugin_namespace: str = PLUGIN_NAMESPACE,
    plugin_version: str = PLUGIN_VERSION,
):
    """Rotate channel pairs (k, k + R) of x by (n + gamma T) times inv_freq[k]."""
    position_BS = op.Cast(position_ids, to=FLOAT.dtype) + gamma * op.Cast(
        temporal_ids, to=FLOAT.dtype
    )
    angle_B1SR = op.Unsqueeze(position_BS, [1, 3]) * inv_freq
    cos = op.CastLike(op.Cos(angle_B1SR) * attention_factor, x)
    sin = op.CastLike(op.Sin(angle_B1SR) * attention_factor, x)
    half = op.Shape(inv_freq)
    rotated = half + half
    first = op.Slice(x, [0], half, [3])
    second = op.Slice(x, half, rotated, [3])
    rest = op.Slice(x, rotated, [9223372036854775807], [3])
    return op.Concat(first * cos - second * sin, second * cos + first * sin, rest, axis=3)
