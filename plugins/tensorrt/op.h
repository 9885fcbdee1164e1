// SPDX-License-Identifier: Apache-2.0
//
// A native op as a binding sees it: its contract as data, and how to launch it. No framework here.
//
// The contracts are those of tc_contract.h. Their axes: B batch, H query heads, K key/value heads,
// S tokens of this call, C cache rows, D head size, R half of the rotated channels.
#ifndef TC_TENSORRT_OP_H
#define TC_TENSORRT_OP_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tc_contract.h"
#include "tc_kernels.h"

namespace tc {

// The length of each axis; kUnknown until an input says it.
class AxisSizes {
 public:
  static constexpr int64_t kUnknown = -1;

  AxisSizes() { sizes_.fill(kUnknown); }

  int64_t operator[](char axis) const { return sizes_[axis - 'A']; }
  void Set(char axis, int64_t size) { sizes_[axis - 'A'] = size; }

  // Takes the lengths from the shape of one input, in which -1 is unknown. Returns what is wrong
  // with the shape, or an empty string.
  std::string Take(const contract::Input& input, int32_t rank, const int64_t* shape);

 private:
  std::array<int64_t, 26> sizes_;
};

struct Call {
  tc_dtype dtype;
  AxisSizes sizes;
  const float* attributes;    // in the order of Op::attributes
  const void* const* inputs;  // in the order of Op::inputs
  void* const* outputs;       // in the order of Op::outputs
};

struct Op {
  const char* name;
  std::vector<contract::Input> inputs;
  std::vector<contract::Output> outputs;
  std::vector<contract::Attribute> attributes;

  // What is wrong with sizes that agree with the axes, or an empty string. Unknown sizes pass.
  std::string (*check)(const AxisSizes& sizes);

  // Device memory that `launch` needs. Reads the type, the sizes and the attributes of the call, and
  // needs no GPU: engines are built where there is none. Fewer tokens or a smaller batch may need
  // more; with any other size, larger never needs less.
  size_t (*workspace_bytes)(const Call& call);

  tc_status (*launch)(const Call& call, void* workspace, size_t workspace_bytes, void* stream);
};

// An op with the names, axes, types and attributes of a contract.
template <class Contract>
Op MakeOp(decltype(Op::check) check, decltype(Op::workspace_bytes) workspace_bytes,
          decltype(Op::launch) launch) {
  return {Contract::kName,
          {Contract::kInputs.begin(), Contract::kInputs.end()},
          {Contract::kOutputs.begin(), Contract::kOutputs.end()},
          {Contract::kAttributes.begin(), Contract::kAttributes.end()},
          check,
          workspace_bytes,
          launch};
}

const Op& DualRope();
const Op& BlockCausalAttention();
const Op& BlockCausalAttentionInt8();

}  // namespace tc

#endif  // TC_TENSORRT_OP_H
