// SPDX-License-Identifier: Apache-2.0
//
// A native op as a binding sees it: its contract as data, and how to launch it. No framework here.
//
// The contracts are those of tc_export/ops/. An axis is one letter, and the same letter is the same
// length everywhere in an op: B batch, H query heads, K key/value heads, S tokens of this call,
// C cache rows, D head size, R half of the rotated channels.
#ifndef TC_TENSORRT_OP_H
#define TC_TENSORRT_OP_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tc_kernels.h"

namespace tc {

// kFloat is the op's floating-point type: that of input 0, in every op.
enum class Element { kFloat, kFloat32, kInt32, kInt64 };

struct InputSpec {
  const char* name;
  const char* axes;
  Element element;
};

// An output has the shape and the type of input `like`, and may be its buffer where `in_place`.
struct OutputSpec {
  const char* name;
  int32_t like;
  bool in_place;
};

struct AttributeSpec {
  const char* name;
  bool required;
  float fallback;  // where it is not required
  bool positive;   // must be above 0
};

// The length of each axis; kUnknown until an input says it.
class AxisSizes {
 public:
  static constexpr int64_t kUnknown = -1;

  AxisSizes() { sizes_.fill(kUnknown); }

  int64_t operator[](char axis) const { return sizes_[axis - 'A']; }
  void Set(char axis, int64_t size) { sizes_[axis - 'A'] = size; }

  // Takes the lengths from the shape of one input, in which -1 is unknown. Returns what is wrong
  // with the shape, or an empty string.
  std::string Take(const InputSpec& input, int32_t rank, const int64_t* shape);

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
  std::vector<InputSpec> inputs;
  std::vector<OutputSpec> outputs;
  std::vector<AttributeSpec> attributes;

  // What is wrong with sizes that agree with the axes, or an empty string. Unknown sizes pass.
  std::string (*check)(const AxisSizes& sizes);

  // Device memory that `launch` needs. Reads the type, the sizes and the attributes of the call, and
  // needs no GPU: engines are built where there is none. Fewer tokens or a smaller batch may need
  // more; with any other size, larger never needs less.
  size_t (*workspace_bytes)(const Call& call);

  tc_status (*launch)(const Call& call, void* workspace, size_t workspace_bytes, void* stream);
};

const Op& DualRope();
const Op& BlockCausalAttention();

}  // namespace tc

#endif  // TC_TENSORRT_OP_H
