// SPDX-License-Identifier: Apache-2.0
//
// The ops' inputs and outputs as this test knows them: small shapes, types and good fields,
// written from the contract and not from the plugin's own tables.
//
// B batch 2, H query heads 4, K key/value heads 2, S tokens 3, C cache rows 8, D head size 64,
// R half of the rotated channels 24.
#ifndef TC_TESTS_OPS_UNDER_TEST_H
#define TC_TESTS_OPS_UNDER_TEST_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace tc_test {

constexpr int64_t kB = 2, kH = 4, kK = 2, kS = 3, kC = 8, kD = 64, kR = 24;

using nvinfer1::DataType;
using Shape = std::vector<int64_t>;

struct Tensor {
  Shape shape;
  DataType type;
};

struct OpUnderTest {
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<int32_t> aliases;  // for each output, the input whose buffer it may be, or -1
};

inline OpUnderTest DualRopeUnderTest(DataType type) {
  const Tensor x{{kB, kH, kS, kD}, type};
  const Tensor ids{{kB, kS}, DataType::kINT64};
  return {"TcDualRope", {x, ids, ids, {{kR}, DataType::kFLOAT}}, {x}, {-1}};
}

inline OpUnderTest AttentionUnderTest(DataType type, int64_t batch = kB, int64_t tokens = kS) {
  const Tensor q{{batch, kH, tokens, kD}, type};
  const Tensor k{{batch, kK, tokens, kD}, type};
  const Tensor kv_end{{batch, tokens}, DataType::kINT32};
  const Tensor slots{{batch, tokens}, DataType::kINT64};
  const Tensor cache{{batch, kK, kC, kD}, type};
  return {"TcBlockCausalAttention",
          {q, k, k, kv_end, slots, cache, cache},
          {q, cache, cache},
          {-1, 5, 6}};
}

inline OpUnderTest AttentionInt8UnderTest(DataType type, int64_t batch = kB, int64_t tokens = kS) {
  OpUnderTest op = AttentionUnderTest(type, batch, tokens);
  const Tensor codes{{batch, kK, kC, kD}, DataType::kINT8};
  const Tensor scales{{batch, kK, kC}, DataType::kFLOAT};
  op.name = "TcBlockCausalAttentionInt8";
  op.inputs.resize(5);
  op.outputs.resize(1);
  for (const Tensor& part : {codes, codes, scales, scales}) {
    op.inputs.push_back(part);
    op.outputs.push_back(part);
  }
  op.aliases = {-1, 5, 6, 7, 8};
  return op;
}

inline nvinfer1::PluginField Float(const char* name, const float& value) {
  return {name, &value, nvinfer1::PluginFieldType::kFLOAT32, 1};
}

// Fields that make a plugin of an op.
inline std::vector<nvinfer1::PluginField> GoodFields(const std::string& op_name) {
  static const float gamma = 0.5f, scale = 0.125f;
  if (op_name == "TcDualRope") {
    return {Float("gamma", gamma)};
  }
  return {Float("scale", scale)};
}

inline nvinfer1::Dims DimsOf(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    dims.d[i] = shape[i];
  }
  return dims;
}

inline std::vector<nvinfer1::PluginTensorDesc> Descs(const std::vector<Tensor>& tensors) {
  std::vector<nvinfer1::PluginTensorDesc> descs;
  for (const Tensor& tensor : tensors) {
    nvinfer1::PluginTensorDesc desc{};
    desc.dims = DimsOf(tensor.shape);
    desc.type = tensor.type;
    desc.format = nvinfer1::TensorFormat::kLINEAR;
    descs.push_back(desc);
  }
  return descs;
}

// Inputs and then outputs, as the builder shows them: shapes at the profile's end.
inline std::vector<nvinfer1::DynamicPluginTensorDesc> DynamicDescs(const OpUnderTest& op) {
  std::vector<Tensor> tensors = op.inputs;
  tensors.insert(tensors.end(), op.outputs.begin(), op.outputs.end());
  std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
  for (const nvinfer1::PluginTensorDesc& desc : Descs(tensors)) {
    descs.push_back({desc, desc.dims, desc.dims, desc.dims});
  }
  return descs;
}

}  // namespace tc_test

#endif  // TC_TESTS_OPS_UNDER_TEST_H
