// SPDX-License-Identifier: Apache-2.0
//
// TcDualRope: rotates channel pairs (k, k + R) of x by (n + gamma T) inv_freq[k].
#include "op.h"

namespace tc {

namespace {

using Contract = contract::TcDualRope;

std::string Check(const AxisSizes& sizes) {
  const int64_t half = sizes['R'];
  const int64_t head_dim = sizes['D'];
  if (half != AxisSizes::kUnknown && head_dim != AxisSizes::kUnknown && 2 * half > head_dim) {
    return "inv_freq has " + std::to_string(half) + " values, which rotate " +
           std::to_string(2 * half) + " channels, but x has " + std::to_string(head_dim);
  }
  return "";
}

size_t WorkspaceBytes(const Call&) { return 0; }

tc_status Launch(const Call& call, void*, size_t, void* stream) {
  tc_dual_rope_args args{};
  args.dtype = call.dtype;
  args.batch = call.sizes['B'];
  args.heads = call.sizes['H'];
  args.tokens = call.sizes['S'];
  args.head_dim = call.sizes['D'];
  args.rotary_half = call.sizes['R'];
  args.gamma = call.attributes[Contract::kGamma];
  args.attention_factor = call.attributes[Contract::kAttentionFactor];
  args.x = call.inputs[Contract::kX];
  args.position_ids = static_cast<const int64_t*>(call.inputs[Contract::kPositionIds]);
  args.temporal_ids = static_cast<const int64_t*>(call.inputs[Contract::kTemporalIds]);
  args.inv_freq = static_cast<const float*>(call.inputs[Contract::kInvFreq]);
  args.y = call.outputs[Contract::kY];
  return tc_cuda_dual_rope(&args, stream);
}

}  // namespace

const Op& DualRope() {
  static const Op op = MakeOp<Contract>(Check, WorkspaceBytes, Launch);
  return op;
}

}  // namespace tc
