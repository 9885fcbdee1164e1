// SPDX-License-Identifier: Apache-2.0
//
// TcBlockCausalAttention: writes k and v into the cache, then attends from row i to its rows
// [0, kv_end[i]).
#include "op.h"

namespace tc {

namespace {

using Contract = contract::TcBlockCausalAttention;

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
tc_attention_args Shape(const Call& call) {
  tc_attention_args args{};
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

size_t WorkspaceBytes(const Call& call) {
  const tc_attention_args args = Shape(call);
  return tc_cuda_block_causal_attention_workspace(&args);
}

tc_status Launch(const Call& call, void* workspace, size_t workspace_bytes, void* stream) {
  tc_attention_args args = Shape(call);
  args.q = call.inputs[Contract::kQ];
  args.k = call.inputs[Contract::kK];
  args.v = call.inputs[Contract::kV];
  args.kv_end = static_cast<const int32_t*>(call.inputs[Contract::kKvEnd]);
  args.slots = static_cast<const int64_t*>(call.inputs[Contract::kSlots]);
  args.past_key = call.inputs[Contract::kPastKey];
  args.past_value = call.inputs[Contract::kPastValue];
  args.y = call.outputs[Contract::kY];
  args.present_key = call.outputs[Contract::kPresentKey];
  args.present_value = call.outputs[Contract::kPresentValue];
  return tc_cuda_block_causal_attention(&args, workspace, workspace_bytes, stream);
}

}  // namespace

const Op& BlockCausalAttention() {
  static const Op op = MakeOp<Contract>(Check, WorkspaceBytes, Launch);
  return op;
}

}  // namespace tc
