// SPDX-License-Identifier: Apache-2.0
//
// One call of a custom op as its contract describes it: inputs that agree in their axes, outputs,
// attributes. All templates take the struct of an op of tc_contract.h.
#ifndef TC_ONNXRUNTIME_CALL_H
#define TC_ONNXRUNTIME_CALL_H

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "tc_contract.h"

namespace tc::ort {

using Shape = std::vector<int64_t>;

[[noreturn]] inline void fail(std::string message, OrtErrorCode code = ORT_INVALID_ARGUMENT) {
  throw Ort::Exception(std::move(message), code);
}

inline std::string text(const Shape& shape) {
  std::string result = "[";
  for (const int64_t size : shape) {
    result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return result + "]";
}

// The inputs of one call: their shapes agree with the contract's axes.
template <class Contract>
class Inputs {
 public:
  // `measures` are the inputs that give the axes their sizes, which all inputs must then have.
  Inputs(const Ort::KernelContext& context, std::initializer_list<size_t> measures)
      : context_(context) {
    for (size_t i = 0; i < shapes_.size(); ++i) {
      shapes_[i] = context_.GetInput(i).GetTensorTypeAndShapeInfo().GetShape();
    }
    for (const size_t i : measures) measure(i);
    for (size_t i = 0; i < shapes_.size(); ++i) {
      if (shapes_[i] != expected(i)) refuse(i, text(expected(i)));
    }
  }

  // The size of an axis.
  int64_t operator[](char axis) const { return sizes_[axis - 'A']; }

  // The shape of an output.
  const Shape& shape_of_output(size_t output) const {
    return shapes_[Contract::kOutputs[output].like];
  }

  template <class T = void>
  const T* data(size_t input) const {
    return static_cast<const T*>(context_.GetInput(input).GetTensorRawData());
  }

 private:
  void measure(size_t input) {
    const std::string axes = Contract::kInputs[input].axes;
    if (shapes_[input].size() != axes.size()) refuse(input, std::to_string(axes.size()) + " axes");
    for (size_t i = 0; i < axes.size(); ++i) {
      int64_t& size = sizes_[axes[i] - 'A'];
      if (size == kUnknown) size = shapes_[input][i];
    }
  }

  Shape expected(size_t input) const {
    Shape shape;
    for (const char axis : std::string(Contract::kInputs[input].axes)) {
      shape.push_back((*this)[axis]);
    }
    return shape;
  }

  [[noreturn]] void refuse(size_t input, const std::string& expected) const {
    fail(std::string(Contract::kName) + ": " + Contract::kInputs[input].name + " is " +
         text(shapes_[input]) + ", expected " + expected);
  }

  static constexpr int64_t kUnknown = -1;

  const Ort::KernelContext& context_;
  std::array<Shape, Contract::kInputs.size()> shapes_;
  std::array<int64_t, 26> sizes_ = [] {
    std::array<int64_t, 26> sizes;
    sizes.fill(kUnknown);
    return sizes;
  }();
};

// Where an output goes.
template <class Contract>
void* output(Ort::KernelContext& context, const Inputs<Contract>& inputs, size_t index) {
  return context.GetOutput(index, inputs.shape_of_output(index)).GetTensorMutableRawData();
}

// The value of a node's attribute, or its default.
template <class Contract>
float attribute(Ort::ConstKernelInfo info, size_t index) {
  const contract::Attribute& wanted = Contract::kAttributes[index];
  if (wanted.required) return info.GetAttribute<float>(wanted.name);
  float value = wanted.fallback;
  const OrtApi& api = Ort::GetApi();
  if (Ort::Status(api.KernelInfoGetAttribute_float(info, wanted.name, &value)).IsOK()) return value;
  // As an integer it is there, but not to be read as a float.
  int64_t integer;
  if (Ort::Status(api.KernelInfoGetAttribute_int64(info, wanted.name, &integer)).IsOK()) {
    fail(std::string(Contract::kName) + ": " + wanted.name + " is an integer, expected a float");
  }
  return wanted.fallback;
}

}  // namespace tc::ort

#endif  // TC_ONNXRUNTIME_CALL_H
