// SPDX-License-Identifier: Apache-2.0
//
// ONNX Runtime's binding of the ops, for the CPU and for CUDA, with neither: over kernels that note
// their arguments, in a runtime that is as much of ONNX Runtime as the binding meets. What the
// kernels compute has tests of its own.
//
// Axes: B batch, H query heads, K key/value heads, S tokens, C cache rows, D head size, R half of
// the rotated channels.

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "fake_runtime.h"
#include "recorded_kernels.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace tc_test {
namespace {

int failures = 0;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                                  \
    }                                                                              \
  } while (false)

constexpr int64_t kB = 2, kH = 6, kK = 3, kS = 4, kC = 9, kD = 8, kR = 1;
constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kBfloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
const std::string kCpu = "CPUExecutionProvider", kCuda = "CUDAExecutionProvider";
constexpr auto kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
const std::string kAttention = "TcBlockCausalAttention", kDualRope = "TcDualRope";
const std::string kAttentionInt8 = "TcBlockCausalAttentionInt8";
const std::vector<std::string> kOps = {kAttention, kAttentionInt8, kDualRope};

// What a function of the C interface answered: its code, ORT_OK for null.
struct Answer {
  explicit Answer(OrtStatus* status)
      : code(status ? status->code : ORT_OK), message(status ? status->message : "") {
    take_back(status);
  }
  bool says(const std::string& words) const { return message.find(words) != std::string::npos; }

  OrtErrorCode code;
  std::string message;
};

const std::vector<const OrtCustomOp*>& registered() {
  static OrtSessionOptions options;
  if (options.domains.empty()) {
    CHECK(Answer(RegisterCustomOps(&options, &kThisRuntime)).code == ORT_OK);
    CHECK(options.domains.size() == 1 && options.domains[0]->name == "tc");
  }
  return options.domains.at(0)->ops;
}

const OrtCustomOp& op_of(const std::string& name, const std::string& provider,
                         ONNXTensorElementDataType type) {
  for (const OrtCustomOp* op : registered()) {
    if (name == op->GetName(op) && provider == op->GetExecutionProviderType(op) &&
        type == op->GetInputType(op, 0)) {
      return *op;
    }
  }
  std::fprintf(stderr, "no %s for the %s\n", name.c_str(), provider.c_str());
  std::exit(1);
}

// A node of a graph: its kernel, inputs and outputs. Each tensor has an address of its own.
class Node {
 public:
  Node(const std::string& name, const std::string& provider, ONNXTensorElementDataType type)
      : op_(op_of(name, provider, type)) {
    recorded = Recorded{};
    runtime = Runtime{};
    context.stream = &memory_[0];
    const std::vector<int64_t> x = {kB, kH, kS, kD}, ids = {kB, kS};
    if (name == kDualRope) {
      info.floats = {{"gamma", 0.5f}, {"attention_factor", 1.5f}};
      add_inputs({{type, x}, {kInt64, ids}, {kInt64, ids}, {kFloat, {kR}}});
    } else {
      const std::vector<int64_t> k = {kB, kK, kS, kD}, cache = {kB, kK, kC, kD};
      info.floats = {{"scale", 0.25f}};
      add_inputs({{type, x}, {type, k}, {type, k}, {kInt32, ids}, {kInt64, ids}});
      if (name == kAttentionInt8) {
        const std::vector<int64_t> scales = {kB, kK, kC};
        add_inputs({{kInt8, cache}, {kInt8, cache}, {kFloat, scales}, {kFloat, scales}});
      } else {
        add_inputs({{type, cache}, {type, cache}});
      }
    }
    for (size_t i = 0; i < op_.GetOutputTypeCount(&op_); ++i) {
      context.outputs.push_back({{op_.GetOutputType(&op_, i), {}}, next()});
    }
  }

  ~Node() {
    if (kernel_ != nullptr) op_.KernelDestroy(kernel_);
    CHECK(runtime.live.empty());
    CHECK(runtime.blocks.empty());
  }

  Answer create() { return Answer(op_.CreateKernelV2(&op_, &api, &info, &kernel_)); }
  Answer run() {
    if (kernel_ == nullptr) CHECK(create().code == ORT_OK);
    return Answer(op_.KernelComputeV2(kernel_, &context));
  }

  const void* in(size_t i) const { return context.inputs[i].data; }
  const void* out(size_t i) const { return context.outputs[i].data; }

  OrtKernelInfo info;
  OrtKernelContext context{};

 private:
  void add_inputs(const std::vector<OrtTensorTypeAndShapeInfo>& tensors) {
    for (const OrtTensorTypeAndShapeInfo& tensor : tensors) {
      CHECK(op_.GetInputType(&op_, context.inputs.size()) == tensor.type);
      context.inputs.push_back({tensor, next()});
    }
  }
  void* next() { return &memory_[++used_]; }

  const OrtCustomOp& op_;
  void* kernel_ = nullptr;
  char memory_[32] = {};  // never read or written
  size_t used_ = 0;
};

tc_dtype dtype_of(ONNXTensorElementDataType type) {
  return type == kFloat ? TC_FLOAT32 : type == kHalf ? TC_FLOAT16 : TC_BFLOAT16;
}

struct Variant {
  std::string provider;
  ONNXTensorElementDataType type;
};
const std::vector<Variant> kVariants = {
    {kCpu, kFloat}, {kCpu, kHalf}, {kCpu, kBfloat}, {kCuda, kHalf}, {kCuda, kBfloat}};

void test_each_op_is_registered_once_for_each_type_and_provider() {
  CHECK(registered().size() == kOps.size() * kVariants.size());
  const std::map<std::string, size_t> inputs = {
      {kAttention, 7}, {kAttentionInt8, 9}, {kDualRope, 4}};
  for (const std::string& name : kOps) {
    for (const Variant& variant : kVariants) {
      const auto T = variant.type;
      std::vector<ONNXTensorElementDataType> outputs = {T};
      if (name == kAttention) outputs = {T, T, T};
      if (name == kAttentionInt8) outputs = {T, kInt8, kInt8, kFloat, kFloat};
      const OrtCustomOp& op = op_of(name, variant.provider, T);
      CHECK(op.GetInputTypeCount(&op) == inputs.at(name));
      CHECK(op.GetOutputTypeCount(&op) == outputs.size());
      for (size_t i = 0; i < outputs.size(); ++i) CHECK(op.GetOutputType(&op, i) == outputs[i]);
    }
  }
}

// Sessions keep pointers to the domain and its ops.
void test_a_second_session_gets_the_same_domain() {
  OrtSessionOptions first, second;
  CHECK(Answer(RegisterCustomOps(&first, &kThisRuntime)).code == ORT_OK);
  CHECK(Answer(RegisterCustomOps(&second, &kThisRuntime)).code == ORT_OK);
  CHECK(first.domains == second.domains);
  CHECK(second.domains.at(0)->ops.size() == kOps.size() * kVariants.size());
}

void test_what_attention_hands_to_the_kernel(const Variant& variant) {
  Node node(kAttention, variant.provider, variant.type);
  CHECK(node.run().code == ORT_OK);
  const tc_attention_args& a = recorded.attention;
  CHECK(a.dtype == dtype_of(variant.type));
  CHECK(a.batch == kB && a.q_heads == kH && a.kv_heads == kK);
  CHECK(a.tokens == kS && a.cache_rows == kC && a.head_dim == kD);
  CHECK(a.scale == 0.25f);
  CHECK(a.q == node.in(0) && a.k == node.in(1) && a.v == node.in(2));
  CHECK(a.kv_end == node.in(3) && a.slots == node.in(4));
  CHECK(a.past_key == node.in(5) && a.past_value == node.in(6));
  CHECK(a.y == node.out(0) && a.present_key == node.out(1) && a.present_value == node.out(2));
  for (size_t i = 0; i < 3; ++i) {
    const size_t same = i == 0 ? 0 : i + 4;
    CHECK(node.context.outputs[i].tensor.shape == node.context.inputs[same].tensor.shape);
  }
}

void test_what_attention_over_int8_hands_to_the_kernel(const Variant& variant) {
  Node node(kAttentionInt8, variant.provider, variant.type);
  CHECK(node.run().code == ORT_OK);
  const tc_attention_int8_args& a = recorded.attention_int8;
  CHECK(a.dtype == dtype_of(variant.type));
  CHECK(a.batch == kB && a.q_heads == kH && a.kv_heads == kK);
  CHECK(a.tokens == kS && a.cache_rows == kC && a.head_dim == kD);
  CHECK(a.scale == 0.25f);
  CHECK(a.q == node.in(0) && a.k == node.in(1) && a.v == node.in(2));
  CHECK(a.kv_end == node.in(3) && a.slots == node.in(4));
  CHECK(a.past_key == node.in(5) && a.past_value == node.in(6));
  CHECK(a.past_key_scale == node.in(7) && a.past_value_scale == node.in(8));
  CHECK(a.y == node.out(0) && a.present_key == node.out(1) && a.present_value == node.out(2));
  CHECK(a.present_key_scale == node.out(3) && a.present_value_scale == node.out(4));
  for (size_t i = 0; i < 5; ++i) {
    const size_t same = i == 0 ? 0 : i + 4;
    CHECK(node.context.outputs[i].tensor.shape == node.context.inputs[same].tensor.shape);
  }
}

void test_what_rotation_hands_to_the_kernel(const Variant& variant) {
  Node node(kDualRope, variant.provider, variant.type);
  CHECK(node.run().code == ORT_OK);
  const tc_dual_rope_args& a = recorded.rope;
  CHECK(a.dtype == dtype_of(variant.type));
  CHECK(a.batch == kB && a.heads == kH && a.tokens == kS && a.head_dim == kD);
  CHECK(a.rotary_half == kR);
  CHECK(a.gamma == 0.5f && a.attention_factor == 1.5f);
  CHECK(a.x == node.in(0) && a.position_ids == node.in(1) && a.temporal_ids == node.in(2));
  CHECK(a.inv_freq == node.in(3) && a.y == node.out(0));
  CHECK(node.context.outputs[0].tensor.shape == node.context.inputs[0].tensor.shape);
}

void test_the_provider_decides_who_computes(const Variant& variant) {
  const std::map<std::string, std::string> functions = {
      {kAttention, "block_causal_attention"},
      {kAttentionInt8, "block_causal_attention_int8"},
      {kDualRope, "dual_rope"}};
  for (const auto& [name, op] : functions) {
    Node node(name, variant.provider, variant.type);
    CHECK(node.run().code == ORT_OK);
    if (variant.provider == kCuda) {
      CHECK(recorded.called == "tc_cuda_" + op);
      CHECK(recorded.stream == node.context.stream);
      CHECK(node.context.parallel_tasks == 0);
    } else {
      CHECK(recorded.called == "tc_cpu_" + op);
      CHECK(node.context.parallel_tasks == kTasks);  // on ONNX Runtime's threads
      CHECK(recorded.tasks_run == kTasks);
    }
  }
}

void test_the_workspace_is_where_q_is_and_is_given_back() {
  Node node(kAttention, kCuda, kHalf);
  recorded.workspace_wanted = 640;
  recorded.during = [] { CHECK(runtime.blocks.count(recorded.workspace) == 1); };
  for (int calls = 0; calls < 2; ++calls) {
    CHECK(node.run().code == ORT_OK);
    CHECK(runtime.memory == &node.context.inputs[0].memory);
    CHECK(runtime.allocated_bytes == 640 && recorded.workspace_bytes == 640);
    CHECK(runtime.blocks.empty());
    CHECK(runtime.live.empty());
  }
}

void test_a_call_that_needs_no_workspace_gets_none() {
  Node node(kAttention, kCuda, kHalf);
  runtime.out_of_memory = true;
  CHECK(node.run().code == ORT_OK);
  CHECK(recorded.workspace == nullptr && recorded.workspace_bytes == 0);
}

void test_without_memory_for_the_workspace_nothing_is_called() {
  Node node(kAttention, kCuda, kHalf);
  recorded.workspace_wanted = 640;
  runtime.out_of_memory = true;
  const Answer answer = node.run();
  CHECK(answer.code == ORT_RUNTIME_EXCEPTION && answer.says("no memory is left"));
  CHECK(recorded.called.empty());
}

void test_what_a_kernel_refuses_is_an_error_of_its_kind(const Variant& variant) {
  const std::map<tc_status, OrtErrorCode> codes = {
      {TC_INVALID_ARGUMENT, ORT_INVALID_ARGUMENT}, {TC_UNSUPPORTED, ORT_NOT_IMPLEMENTED},
      {TC_CACHE_OVERFLOW, ORT_INVALID_ARGUMENT},   {TC_KV_END_OUT_OF_RANGE, ORT_INVALID_ARGUMENT},
      {TC_OUT_OF_MEMORY, ORT_FAIL},                {TC_LAUNCH_FAILED, ORT_FAIL},
  };
  for (const std::string& name : kOps) {
    for (const auto& [status, code] : codes) {
      Node node(name, variant.provider, variant.type);
      recorded.workspace_wanted = 64;
      recorded.answer = status;
      const Answer answer = node.run();
      CHECK(answer.code == code);
      CHECK(answer.message == name + ": " + tc_status_message(status));
    }
  }
}

void test_no_exception_leaves_the_library(const Variant& variant) {
  for (const std::string& name : kOps) {
    Node node(name, variant.provider, variant.type);
    recorded.workspace_wanted = 64;
    recorded.during = [] { throw std::runtime_error("thrown by a kernel"); };
    const Answer answer = node.run();
    CHECK(answer.code == ORT_FAIL && answer.message == "thrown by a kernel");
  }
}

void test_attributes_without_a_default_are_required() {
  for (const Variant& variant : kVariants) {
    for (const std::string& name : kOps) {
      Node node(name, variant.provider, variant.type);
      node.info.floats.erase(name == kDualRope ? "gamma" : "scale");
      CHECK(node.create().code != ORT_OK);
    }
    Node node(kDualRope, variant.provider, variant.type);
    node.info.floats.erase("attention_factor");
    CHECK(node.run().code == ORT_OK);
    CHECK(recorded.rope.attention_factor == 1.0f);
  }
}

void test_an_older_runtime_is_refused() {
  OrtSessionOptions options;
  const Answer answer(RegisterCustomOps(&options, &kOlderRuntime));
  CHECK(answer.code == ORT_NOT_IMPLEMENTED);
  CHECK(answer.says("need ONNX Runtime 1." + std::to_string(ORT_API_VERSION) + " or later"));
  CHECK(answer.says("this is 1.16.3"));
  CHECK(options.domains.empty());
}

}  // namespace
}  // namespace tc_test

int main() {
  using namespace tc_test;
  test_an_older_runtime_is_refused();
  test_each_op_is_registered_once_for_each_type_and_provider();
  test_a_second_session_gets_the_same_domain();
  for (const Variant& variant : kVariants) {
    test_what_attention_hands_to_the_kernel(variant);
    test_what_attention_over_int8_hands_to_the_kernel(variant);
    test_what_rotation_hands_to_the_kernel(variant);
    test_the_provider_decides_who_computes(variant);
    test_what_a_kernel_refuses_is_an_error_of_its_kind(variant);
    test_no_exception_leaves_the_library(variant);
  }
  test_the_workspace_is_where_q_is_and_is_given_back();
  test_a_call_that_needs_no_workspace_gets_none();
  test_without_memory_for_the_workspace_nothing_is_called();
  test_attributes_without_a_default_are_required();
  std::printf("onnxruntime: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
