// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "fields.h"
#include "log.h"

namespace tc {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

// What TensorRT takes as success, and as failure.
constexpr int32_t kDone = 0;
constexpr int32_t kFailed = -1;

bool Matches(DataType type, contract::Type expected, DataType float_type) {
  switch (expected) {
    case contract::Type::kT:
      return type == float_type && (type == DataType::kHALF || type == DataType::kBF16);
    case contract::Type::kFloat32:
      return type == DataType::kFLOAT;
    case contract::Type::kInt32:
      return type == DataType::kINT32;
    case contract::Type::kInt64:
      return type == DataType::kINT64;
    case contract::Type::kInt8:
      return type == DataType::kINT8;
  }
  return false;
}

const char* Expected(contract::Type type) {
  switch (type) {
    case contract::Type::kT:
      return "float16 or bfloat16, as all of the op's such tensors";
    case contract::Type::kFloat32:
      return "float32";
    case contract::Type::kInt32:
      return "int32";
    case contract::Type::kInt64:
      return "int64";
    case contract::Type::kInt8:
      return "int8";
  }
  return "";
}

std::string TypeName(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kINT8:
      return "int8";
    default:
      return "of type " + std::to_string(static_cast<int32_t>(type)) + " (DataType)";
  }
}

tc_dtype FloatType(DataType type) { return type == DataType::kBF16 ? TC_BFLOAT16 : TC_FLOAT16; }

// Reads the axes' sizes from the inputs' shapes, each of which `shape_of` gives. Returns what is
// wrong with them, or an empty string.
template <typename ShapeOf>
std::string ReadSizes(const Op& op, ShapeOf shape_of, AxisSizes* sizes) {
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const Dims shape = shape_of(i);
    const std::string problem = sizes->Take(op.inputs[i], shape.nbDims, shape.d);
    if (!problem.empty()) {
      return problem;
    }
  }
  return op.check(*sizes);
}

// The constants of a symbolic shape; -1 for what is known at run time only.
Dims ConstantsOf(const DimsExprs& expressions) {
  Dims shape{};
  shape.nbDims = expressions.nbDims;
  for (int32_t i = 0; i < shape.nbDims; ++i) {
    const nvinfer1::IDimensionExpr* size = expressions.d[i];
    shape.d[i] = size->isConstant() ? size->getConstantValue() : AxisSizes::kUnknown;
  }
  return shape;
}

}  // namespace

Plugin::Plugin(const Op& op, std::vector<float> attributes)
    : op_(op), attributes_(std::move(attributes)), fields_(MakeFields(op, attributes_.data())) {
  field_collection_.nbFields = static_cast<int32_t>(fields_.size());
  field_collection_.fields = fields_.data();
}

bool Plugin::HasCounts(int32_t input_count, int32_t output_count) const noexcept {
  if (input_count == static_cast<int32_t>(op_.inputs.size()) && output_count == getNbOutputs()) {
    return true;
  }
  Report("it has " + std::to_string(input_count) + " inputs and " + std::to_string(output_count) +
         " outputs, but must have " + std::to_string(op_.inputs.size()) + " and " +
         std::to_string(getNbOutputs()));
  return false;
}

void Plugin::Report(const std::string& problem) const noexcept {
  LogError(std::string(op_.name) + ": " + problem);
}

// True where there is no problem; else reports it.
bool Plugin::Accept(const std::string& problem) const noexcept {
  if (!problem.empty()) {
    Report(problem);
  }
  return problem.empty();
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  try {
    return new Plugin(op_, attributes_);
  } catch (const std::exception& error) {
    Report(error.what());
    return nullptr;
  }
}

const char* Plugin::getPluginName() const noexcept { return op_.name; }
const char* Plugin::getPluginVersion() const noexcept { return contract::kPluginVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return contract::kPluginNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(op_.outputs.size()); }

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t output_count,
                                   const DataType* input_types,
                                   int32_t input_count) const noexcept {
  if (!HasCounts(input_count, output_count)) {
    return kFailed;
  }
  // TensorRT's own message for a wrong type names neither the tensor nor the type, so look here.
  for (int32_t i = 0; i < input_count; ++i) {
    const contract::Input& input = op_.inputs[i];
    if (!Matches(input_types[i], input.type, input_types[0])) {
      Report(std::string(input.name) + " is " + TypeName(input_types[i]) + ", but must be " +
             Expected(input.type));
      return kFailed;
    }
  }
  for (int32_t i = 0; i < output_count; ++i) {
    output_types[i] = input_types[op_.outputs[i].like];
  }
  return kDone;
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                int32_t, DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  if (!HasCounts(input_count, output_count)) {
    return kFailed;
  }
  AxisSizes sizes;
  if (!Accept(ReadSizes(op_, [&](size_t i) { return ConstantsOf(inputs[i]); }, &sizes))) {
    return kFailed;
  }
  for (int32_t i = 0; i < output_count; ++i) {
    outputs[i] = inputs[op_.outputs[i].like];
  }
  return kDone;
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (!HasCounts(input_count, output_count) || position >= input_count + output_count) {
    return false;
  }
  const PluginTensorDesc& tensor = tensors[position].desc;
  const bool is_input = position < input_count;
  const int32_t input = is_input ? position : op_.outputs[position - input_count].like;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
         Matches(tensor.type, op_.inputs[input].type, tensors[0].desc.type);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  AxisSizes sizes;
  const auto shape_of = [&](size_t i) { return inputs[i].desc.dims; };
  const bool accepted =
      HasCounts(input_count, output_count) && Accept(ReadSizes(op_, shape_of, &sizes));
  return accepted ? kDone : kFailed;
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*,
                                int32_t output_count) const noexcept {
  if (!HasCounts(input_count, output_count)) {
    return 0;
  }
  Call call{};
  call.dtype = FloatType(inputs[0].desc.type);
  call.attributes = attributes_.data();
  for (int32_t i = 0; i < input_count; ++i) {
    const std::string axes = op_.inputs[i].axes;
    const size_t rank = std::min<size_t>(axes.size(), inputs[i].max.nbDims);
    for (size_t k = 0; k < rank; ++k) {
      call.sizes.Set(axes[k], std::max(call.sizes[axes[k]], inputs[i].max.d[k]));
    }
  }
  // The largest call need not want the most: decode splits over the keys, into more parts where
  // there is less to do otherwise, and prefill does not. So every batch and number of tokens is
  // asked for; no GPU is touched.
  size_t bytes = 0;
  const int64_t most_tokens = call.sizes['S'];
  for (int64_t batch = call.sizes['B']; batch > 0; --batch) {
    call.sizes.Set('B', batch);
    for (int64_t tokens = 1; tokens <= most_tokens; ++tokens) {
      call.sizes.Set('S', tokens);
      bytes = std::max(bytes, op_.workspace_bytes(call));
    }
  }
  return bytes;
}

int32_t Plugin::getAliasedInput(int32_t output) noexcept {
  const bool in_place = output >= 0 && output < getNbOutputs() && op_.outputs[output].in_place;
  return in_place ? op_.outputs[output].like : -1;
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                              const PluginTensorDesc*, int32_t output_count) noexcept {
  AxisSizes sizes;
  const auto shape_of = [&](size_t i) { return inputs[i].dims; };
  const bool accepted =
      HasCounts(input_count, output_count) && Accept(ReadSizes(op_, shape_of, &sizes));
  return accepted ? kDone : kFailed;
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  Call call{};
  if (!Accept(ReadSizes(op_, [&](size_t i) { return input_descs[i].dims; }, &call.sizes))) {
    return kFailed;
  }
  call.dtype = FloatType(input_descs[0].type);
  call.attributes = attributes_.data();
  call.inputs = inputs;
  call.outputs = outputs;
  // What this call needs is at most what getWorkspaceSize asked for.
  const tc_status status = op_.launch(call, workspace, op_.workspace_bytes(call), stream);
  if (status != TC_OK) {
    Report(tc_status_message(status));
    return kFailed;
  }
  return kDone;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return &field_collection_;
}

}  // namespace tc
