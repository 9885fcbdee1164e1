# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttention` in standard ONNX operators, for runtimes without our library.

It builds the mask [B, 1, S, L] that the native kernels never need, over the L cache rows that any
query of the call sees; a caller bounds it by prefilling in chunks. Where present_* is bound to the
buffer of past_*, ONNX Runtime updates the cache in place.

Axes: B batch, H query heads, K key/value heads, S tokens of this call, C cache rows, L rows seen,
D head size.
"""

from __future__ import annotations

from onnxscript import INT32, INT64, opset23, script
from onnxscript.values import Opset

from tc_export.contracts.ops import DOMAIN, OPSET_VERSION, PLUGIN_NAMESPACE, PLUGIN_VERSION

tc = Opset(DOMAIN, OPSET_VERSION)
op = opset23


@script(tc, default_opset=op)
def TcBlockCausalAttention(
    q,
    k,
    v,
    kv_end,
    slots,
    past_key,
    past_value,
    scale: float,
    plugin_namespace: str = PLUGIN_NAMESPACE,
    plugin_version: str = PLUGIN_VERSION,
):
    """Write k and v to cache rows `slots`, then attend from row i to rows [0, kv_end[i])."""
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    rows_BKS = op.Shape(k, start=0, end=3)
    batch = op.Range(zero, op.Squeeze(op.Shape(k, start=0, end=1)), one)
    head = op.Range(zero, op.Squeeze(op.Shape(k, start=1, end=2)), one)
    index_BKS3 = op.Concat(
        op.Unsqueeze(op.Expand(op.Unsqueeze(batch, [1, 2]), rows_BKS), [3]),
        op.Unsqueeze(op.Expand(op.Unsqueeze(head, [0, 2]), rows_BKS), [3]),
        op.Unsqueeze(op.Expand(op.Unsqueeze(slots, [1]), rows_BKS), [3]),
        axis=3,
    )
    present_key = op.ScatterND(past_key, index_BKS3, k)
    present_value = op.ScatterND(past_value, index_BKS3, v)

    end_BS = op.Cast(kv_end, to=INT64.dtype)
    length = op.Max(op.ReduceMax(end_BS, keepdims=0), one)
    length_1 = op.Unsqueeze(length, [0])
    key_BKLD = op.Slice(present_key, [0], length_1, [2])
    value_BKLD = op.Slice(present_value, [0], length_1, [2])

    # A padding row sees nothing, and a softmax over nothing is not a number: let it see all, and
    # give it zeros afterwards.
    is_padding_BS = op.LessOrEqual(kv_end, op.Cast(zero, to=INT32.dtype))
    seen_BSL = op.Less(op.Range(zero, length, one), op.Unsqueeze(end_BS, [2]))
    mask_B1SL = op.Unsqueeze(op.Or(seen_BSL, op.Unsqueeze(is_padding_BS, [2])), [1])
    y_BHSD = op.Attention(q, key_BKLD, value_BKLD, mask_B1SL, scale=scale)
    y = op.Where(op.Unsqueeze(is_padding_BS, [1, 3]), op.CastLike(zero, y_BHSD), y_BHSD)
    return y, present_key, present_value
