// SPDX-License-Identifier: Apache-2.0
//
// What the custom ops promise, for C++. Generated from tc_export/contracts/ops.py: do not edit, but
// change the contract and run `python scripts/generate_contract.py`.
#ifndef TC_CONTRACT_H
#define TC_CONTRACT_H

#include <array>
#include <cstdint>

#include "tc_kernels.h"

namespace tc::contract {

inline constexpr const char* kDomain = "tc";
inline constexpr const char* kPluginNamespace = "tc";
inline constexpr const char* kPluginVersion = "1";

inline constexpr int64_t kPadding = -1;  // the n, the T and the slot of a padding token

// The types that T may be: an op's floating-point type, which is that of its input 0.
inline constexpr std::array kFloatTypes = {TC_FLOAT32, TC_FLOAT16, TC_BFLOAT16};

enum class Type { kT, kFloat32, kInt32, kInt64, kInt8 };

// `axes` has a letter for each dimension; the same letter is the same length everywhere in an op.
struct Input {
  const char* name;
  const char* axes;
  Type type;
};

// An output has the shape and the type of input `like`, and may be its buffer where `in_place`.
struct Output {
  const char* name;
  int like;
  bool in_place;
};

// A float32. `fallback` is its value where it is not given; `positive`: it must be above 0.
struct Attribute {
  const char* name;
  bool required;
  float fallback;
  bool positive;
};

// Rotates channel pairs (k, k + R) of x by (n + gamma T) times inv_freq[k].
struct TcDualRope {
  static constexpr const char* kName = "TcDualRope";

  enum { kX, kPositionIds, kTemporalIds, kInvFreq };
  static constexpr std::array<Input, 4> kInputs = {{
      {"x", "BHSD", Type::kT},
      {"position_ids", "BS", Type::kInt64},
      {"temporal_ids", "BS", Type::kInt64},
      {"inv_freq", "R", Type::kFloat32},
  }};

  enum { kY };
  static constexpr std::array<Output, 1> kOutputs = {{
      {"y", kX, false},
  }};

  enum { kGamma, kAttentionFactor };
  static constexpr std::array<Attribute, 2> kAttributes = {{
      {"gamma", true, 0.0f, false},
      {"attention_factor", false, 1.0f, true},
  }};
};

// Writes k and v into the cache, then attends from row i to cache rows [0, kv_end[i]).
struct TcBlockCausalAttention {
  static constexpr const char* kName = "TcBlockCausalAttention";

  enum { kQ, kK, kV, kKvEnd, kSlots, kPastKey, kPastValue };
  static constexpr std::array<Input, 7> kInputs = {{
      {"q", "BHSD", Type::kT},
      {"k", "BKSD", Type::kT},
      {"v", "BKSD", Type::kT},
      {"kv_end", "BS", Type::kInt32},
      {"slots", "BS", Type::kInt64},
      {"past_key", "BKCD", Type::kT},
      {"past_value", "BKCD", Type::kT},
  }};

  enum { kY, kPresentKey, kPresentValue };
  static constexpr std::array<Output, 3> kOutputs = {{
      {"y", kQ, false},
      {"present_key", kPastKey, true},
      {"present_value", kPastValue, true},
  }};

  enum { kScale };
  static constexpr std::array<Attribute, 1> kAttributes = {{
      {"scale", true, 0.0f, true},
  }};
};

// TcBlockCausalAttention over a cache in int8, with a scale for each row of each head.
struct TcBlockCausalAttentionInt8 {
  static constexpr const char* kName = "TcBlockCausalAttentionInt8";

  enum { kQ, kK, kV, kKvEnd, kSlots, kPastKey, kPastValue, kPastKeyScale, kPastValueScale };
  static constexpr std::array<Input, 9> kInputs = {{
      {"q", "BHSD", Type::kT},
      {"k", "BKSD", Type::kT},
      {"v", "BKSD", Type::kT},
      {"kv_end", "BS", Type::kInt32},
      {"slots", "BS", Type::kInt64},
      {"past_key", "BKCD", Type::kInt8},
      {"past_value", "BKCD", Type::kInt8},
      {"past_key_scale", "BKC", Type::kFloat32},
      {"past_value_scale", "BKC", Type::kFloat32},
  }};

  enum { kY, kPresentKey, kPresentValue, kPresentKeyScale, kPresentValueScale };
  static constexpr std::array<Output, 5> kOutputs = {{
      {"y", kQ, false},
      {"present_key", kPastKey, true},
      {"present_value", kPastValue, true},
      {"present_key_scale", kPastKeyScale, true},
      {"present_value_scale", kPastValueScale, true},
  }};

  enum { kScale };
  static constexpr std::array<Attribute, 1> kAttributes = {{
      {"scale", true, 0.0f, true},
  }};
};

inline constexpr int kOpCount = 3;

}  // namespace tc::contract

#endif  // TC_CONTRACT_H
