# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttentionInt8` in standard ONNX operators, for runtimes without our library.

New rows are rounded to int8 and written; the rows that a query of the call sees are widened to the
type of q, and the rest is `TcBlockCausalAttention`'s body.

Axes: B batch, H query heads, K key/value heads, S tokens of this call, C cache rows, L rows seen,
D head size.
"""

from __future__ import annotations

from onnxscript import FLOAT, INT8, INT32, INT64, opset23, script
from onnxscript.values import Opset

from tc_export.contracts.ops import DOMAIN, OPSET_VERSION, PLUGIN_NAMESPACE, PLUGIN_VERSION

tc = Opset(DOMAIN, OPSET_VERSION)
op = opset23


@script(tc, default_opset=op)
def TcBlockCausalAttentionInt8(
    q,
    k,
    v,
    kv_end,
    slots,
    past_key,
    past_value,
    past_key_scale,
    past_value_scale,
    scale: float,
    plugin_namespace: str = PLUGIN_NAMESPACE,
    plugin_version: str = PLUGIN_VERSION,
):
    """Write k and v, rounded, to cache rows `slots`, then attend from row i to [0, kv_end[i])."""
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

    # The scale of a row is its largest number over 127; see tc_export.ops.quantized_rows.
    largest = op.Constant(value_float=127.0)
    nothing = op.Constant(value_float=0.0)
    unit = op.Constant(value_float=1.0)
    key_BKSD = op.Cast(k, to=FLOAT.dtype)
    value_BKSD = op.Cast(v, to=FLOAT.dtype)
    key_scale_BKS1 = op.ReduceMax(op.Abs(key_BKSD), [3]) / largest
    value_scale_BKS1 = op.ReduceMax(op.Abs(value_BKSD), [3]) / largest
    key_divisor = op.Where(op.Greater(key_scale_BKS1, nothing), key_scale_BKS1, unit)
    value_divisor = op.Where(op.Greater(value_scale_BKS1, nothing), value_scale_BKS1, unit)
    key_codes = op.Clip(op.Round(key_BKSD / key_divisor), op.Neg(largest), largest)
    value_codes = op.Clip(op.Round(value_BKSD / value_divisor), op.Neg(largest), largest)
    present_key = op.ScatterND(past_key, index_BKS3, op.Cast(key_codes, to=INT8.dtype))
    present_value = op.ScatterND(past_value, index_BKS3, op.Cast(value_codes, to=INT8.dtype))
    present_key_scale = op.ScatterND(past_key_scale, index_BKS3, op.Squeeze(key_scale_BKS1, [3]))
    present_value_scale = op.ScatterND(
        past_value_scale, index_BKS3, op.Squeeze(value_scale_BKS1, [3])
    )

    end_BS = op.Cast(kv_end, to=INT64.dtype)
    length = op.Max(op.ReduceMax(end_BS, keepdims=0), one)
    length_1 = op.Unsqueeze(length, [0])
    key_codes_BKLD = op.Cast(op.Slice(present_key, [0], length_1, [2]), to=FLOAT.dtype)
    value_codes_BKLD = op.Cast(op.Slice(present_value, [0], length_1, [2]), to=FLOAT.dtype)
    key_scale_BKL = op.Slice(present_key_scale, [0], length_1, [2])
    value_scale_BKL = op.Slice(present_value_scale, [0], length_1, [2])
    key_BKLD = op.CastLike(key_codes_BKLD * op.Unsqueeze(key_scale_BKL, [3]), q)
    value_BKLD = op.CastLike(value_codes_BKLD * op.Unsqueeze(value_scale_BKL, [3]), q)

    # A padding row sees nothing, and a softmax over nothing is not a number: let it see all, and
    # give it zeros afterwards.
    is_padding_BS = op.LessOrEqual(kv_end, op.Cast(zero, to=INT32.dtype))
    seen_BSL = op.Less(op.Range(zero, length, one), op.Unsqueeze(end_BS, [2]))
    mask_B1SL = op.Unsqueeze(op.Or(seen_BSL, op.Unsqueeze(is_padding_BS, [2])), [1])
    y_BHSD = op.Attention(q, key_BKLD, value_BKLD, mask_B1SL, scale=scale)
    y = op.Where(op.Unsqueeze(is_padding_BS, [1, 3]), op.CastLike(zero, y_BHSD), y_BHSD)
    return y, present_key, present_value, present_key_scale, present_value_scale
