// SPDX-License-Identifier: Apache-2.0
//
// TcBlockCausalAttention: writes k and v into the cache, then attends from row i to its rows
// [0, kv_end[i]). TcBlockCausalAttentionInt8: the same over a cache in int8.
#include "op.h"

namespace tc {

namespace {

using Plain = contract::TcBlockCausalAttention;
using Int8 = contract::TcBlockCausalAttentionInt8;

std::string Check(const AxisSizes& sizes) {
  const int64_t q_heads = sizes['H'];
  const int64_t kv_heads = sizes['K'];
  if (q_heads > 0 && kv_heads > 0 && q_heads % kv_heads != 0) {
    return "q has " + std::to_string(q_heads) + " heads, which is no multiple of the " +
           std::to_string(kv_heads) + " of k and v";
  }
  return "";
}

// All of the arguments but the pointers.
template <class Contract, class Args>
Args Shape(const Call& call) {
  Args args{};
  args.dtype = call.dtype;
  args.batch = call.sizes['B'];
  args.q_heads = call.sizes['H'];
  args.kv_heads = call.sizes['K'];
  args.tokens = call.sizes['S'];
  args.cache_rows = call.sizes['C'];
  args.head_dim = call.sizes['D'];
  args.scale = call.attributes[Contract::kScale];
  return args;
}

// All of the arguments but the cache.
template <class Contract, class Args>
Args WithoutCache(const Call& call) {
  Args args = Shape<Contract, Args>(call);
  args.q = call.inputs[Contract::kQ];
  args.k = call.inputs[Contract::kK];
  args.v = call.inputs[Contract::kV];
  args.kv_end = static_cast<const int32_t*>(call.inputs[Contract::kKvEnd]);
  args.slots = static_cast<const int64_t*>(call.inputs[Contract::kSlots]);
  args.y = call.outputs[Contract::kY];
  return args;
}

size_t PlainWorkspaceBytes(const Call& call) {
  const auto args = Shape<Plain, tc_attention_args>(call);
  return tc_cuda_block_causal_attention_workspace(&args);
}

tc_status LaunchPlain(const Call& call, void* workspace, size_t workspace_bytes, void* stream) {
  auto args = WithoutCache<Plain, tc_attention_args>(call);
  args.past_key = call.inputs[Plain::kPastKey];
  args.past_value = call.inputs[Plain::kPastValue];
  args.present_key = call.outputs[Plain::kPresentKey];
  args.present_value = call.outputs[Plain::kPresentValue];
  return tc_cuda_block_causal_attention(&args, workspace, workspace_bytes, stream);
}

size_t Int8WorkspaceBytes(const Call& call) {
  const auto args = Shape<Int8, tc_attention_int8_args>(call);
  return tc_cuda_block_causal_attention_int8_workspace(&args);
}

tc_status LaunchInt8(const Call& call, void* workspace, size_t workspace_bytes, void* stream) {
  auto args = WithoutCache<Int8, tc_attention_int8_args>(call);
  args.past_key = static_cast<const int8_t*>(call.inputs[Int8::kPastKey]);
  args.past_value = static_cast<const int8_t*>(call.inputs[Int8::kPastValue]);
  args.past_key_scale = static_cast<const float*>(call.inputs[Int8::kPastKeyScale]);
  args.past_value_scale = static_cast<const float*>(call.inputs[Int8::kPastValueScale]);
  args.present_key = static_cast<int8_t*>(call.outputs[Int8::kPresentKey]);
  args.present_value = static_cast<int8_t*>(call.outputs[Int8::kPresentValue]);
  args.present_key_scale = static_cast<float*>(call.outputs[Int8::kPresentKeyScale]);
  args.present_value_scale = static_cast<float*>(call.outputs[Int8::kPresentValueScale]);
  return tc_cuda_block_causal_attention_int8(&args, workspace, workspace_bytes, stream);
}

}  // namespace

const Op& BlockCausalAttention() {
  static const Op op = MakeOp<Plain>(Check, PlainWorkspaceBytes, LaunchPlain);
  return op;
}

const Op& BlockCausalAttentionInt8() {
  static const Op op = MakeOp<Int8>(Check, Int8WorkspaceBytes, LaunchInt8);
  return op;
}

}  // namespace tc
