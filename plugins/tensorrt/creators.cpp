// SPDX-License-Identifier: Apache-2.0
//
// The library's entry points: what TensorRT looks up when it loads a plugin library.
//
// Nothing registers itself from a static initialiser (REGISTER_TENSORRT_PLUGIN): that would need
// libnvinfer at link time, and would register each creator twice when the library is loaded.
#include <NvInferRuntime.h>

#include <exception>
#include <iterator>
#include <string>
#include <vector>

#include "fields.h"
#include "log.h"
#include "op.h"
#include "plugin.h"

namespace tc {

namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op) : op_(op), fields_(MakeFields(op, nullptr)) {
    field_collection_.nbFields = static_cast<int32_t>(fields_.size());
    field_collection_.fields = fields_.data();
  }

  // Called with the node's attributes at build time, and with what was serialised at run time.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    try {
      const nvinfer1::PluginFieldCollection none{};
      return new Plugin(op_, ReadAttributes(op_, fields != nullptr ? *fields : none));
    } catch (const std::exception& error) {
      LogError(std::string(op_.name) + " '" + (name != nullptr ? name : "") +
               "': " + error.what());
      return nullptr;
    }
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    return &field_collection_;
  }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return contract::kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return contract::kPluginNamespace; }

 private:
  const Op& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection field_collection_{};
};

}  // namespace

}  // namespace tc

// TC_API, because TensorRT's own macro for exports is empty outside its libraries.
extern "C" {

TC_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& creator_count) {
  static tc::Creator dual_rope(tc::DualRope());
  static tc::Creator block_causal_attention(tc::BlockCausalAttention());
  static tc::Creator block_causal_attention_int8(tc::BlockCausalAttentionInt8());
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &dual_rope, &block_causal_attention, &block_causal_attention_int8};
  static_assert(std::size(creators) == tc::contract::kOpCount, "every op has a plugin");
  creator_count = tc::contract::kOpCount;
  return creators;
}

// The older name of the same list. A version looks for one or for both, and registers one.
TC_API nvinfer1::IPluginCreatorInterface* const* getPluginCreators(int32_t& creator_count) {
  return getCreators(creator_count);
}

TC_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { tc::SetLoggerFinder(finder); }

}  // extern "C"
