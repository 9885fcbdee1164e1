// SPDX-License-Identifier: Apache-2.0
#include "op.h"

#include <cstring>

namespace tc {

namespace {

std::string ShapeText(int32_t rank, const int64_t* shape) {
  std::string text = "[";
  for (int32_t i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace

std::string AxisSizes::Take(const contract::Input& input, int32_t rank, const int64_t* shape) {
  const auto expected_rank = static_cast<int32_t>(std::strlen(input.axes));
  if (rank != expected_rank) {
    return std::string(input.name) + " is " + ShapeText(rank, shape) + ", but must have " +
           std::to_string(expected_rank) + " axes: " + input.axes;
  }
  for (int32_t i = 0; i < rank; ++i) {
    const char axis = input.axes[i];
    const int64_t known = (*this)[axis];
    if (shape[i] == kUnknown) {
      continue;
    }
    if (known != kUnknown && known != shape[i]) {
      return std::string(input.name) + " is " + ShapeText(rank, shape) + " (" + input.axes +
             "), but axis " + axis + " is " + std::to_string(known) + " in an earlier input";
    }
    Set(axis, shape[i]);
  }
  return "";
}

}  // namespace tc
