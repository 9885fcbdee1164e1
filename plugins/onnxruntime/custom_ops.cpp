// SPDX-License-Identifier: Apache-2.0
//
// tc::TcDualRope and tc::TcBlockCausalAttention as custom ops of ONNX Runtime. Contracts:
// tc_export/ops/. The work is done on ONNX Runtime's own threads (or, in a CUDA build, stream).
//
// An output that the caller bound to the buffer of an input (I/O binding: present_key to past_key)
// is recognised by its address: the cache is then written in place and nothing is copied.
//
// Axes: B batch, H query heads, K key/value heads, S tokens, C cache rows, D head size.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tc_kernels.h"

namespace {

using Shape = std::vector<int64_t>;

constexpr const char* kDomain = "tc";
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

enum class Provider { kCpu, kCuda };

[[noreturn]] void fail(std::string message, OrtErrorCode code = ORT_INVALID_ARGUMENT) {
  throw Ort::Exception(std::move(message), code);
}

OrtErrorCode code_of(tc_status status) {
  switch (status) {
    case TC_UNSUPPORTED:
      return ORT_NOT_IMPLEMENTED;
    case TC_OUT_OF_MEMORY:
    case TC_LAUNCH_FAILED:
      return ORT_FAIL;
    default:
      return ORT_INVALID_ARGUMENT;
  }
}

void check(const char* op, tc_status status) {
  if (status != TC_OK) fail(std::string(op) + ": " + tc_status_message(status), code_of(status));
}

// Exceptions stay on this side of the C interface.
template <class Function>
OrtStatusPtr as_status(const Function& function) {
  try {
    function();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

tc_dtype stored_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return TC_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return TC_BFLOAT16;
    default:
      return TC_FLOAT32;
  }
}

std::string text(const Shape& shape) {
  std::string result = "[";
  for (const int64_t size : shape) {
    result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return result + "]";
}

// The inputs of one call, with their shapes.
class Inputs {
 public:
  Inputs(const char* op, const Ort::KernelContext& context) : op_(op), context_(context) {}

  Shape shape(size_t index) const {
    return context_.GetInput(index).GetTensorTypeAndShapeInfo().GetShape();
  }

  // The shape of input `index`, which must have `rank` axes.
  Shape shape_of_rank(size_t index, const char* name, size_t rank) const {
    const Shape found = shape(index);
    if (found.size() != rank) {
      fail(op_ + ": " + name + " is " + text(found) + ", expected " + std::to_string(rank) +
           " axes");
    }
    return found;
  }

  template <class T = void>
  const T* data(size_t index) const {
    return static_cast<const T*>(context_.GetInput(index).GetTensorRawData());
  }

  // The data of input `index`, which must have exactly this shape.
  template <class T = void>
  const T* data(size_t index, const char* name, const Shape& expected) const {
    const Shape found = shape(index);
    if (found != expected) {
      fail(op_ + ": " + name + " is " + text(found) + ", expected " + text(expected));
    }
    return data<T>(index);
  }

  tc_dtype dtype() const {
    return stored_type(context_.GetInput(0).GetTensorTypeAndShapeInfo().GetElementType());
  }

 private:
  std::string op_;
  const Ort::KernelContext& context_;
};

void parallel_for(void* context, size_t n, void (*task)(void*, size_t), void* data) {
  static_cast<Ort::KernelContext*>(context)->ParallelFor(task, n, /*num_batch=*/0, data);
}

// --- TcBlockCausalAttention --------------------------------------------------------------------

constexpr const char* kAttention = "TcBlockCausalAttention";

void run_attention(Provider provider, const tc_attention_args& args, Ort::KernelContext& context) {
  if (provider == Provider::kCpu) {
    check(kAttention, tc_cpu_block_causal_attention(&args, parallel_for, &context));
    return;
  }
#if defined(TC_WITH_CUDA)
  const OrtApi& api = Ort::GetApi();
  const size_t bytes = tc_cuda_block_causal_attention_workspace(&args);
  const Ort::ConstMemoryInfo memory = context.GetInput(0).GetTensorMemoryInfo();
  const std::unique_ptr<OrtAllocator, decltype(api.ReleaseAllocator)> ours(
      context.GetAllocator(*memory), api.ReleaseAllocator);
  Ort::UnownedAllocator allocator(ours.get());
  const auto release = [&](void* block) { allocator.Free(block); };
  const std::unique_ptr<void, decltype(release)> workspace(
      bytes > 0 ? allocator.Alloc(bytes) : nullptr, release);
  check(kAttention, tc_cuda_block_causal_attention(&args, workspace.get(), bytes,
                                                   context.GetGPUComputeStream()));
#endif
}

class AttentionKernel {
 public:
  AttentionKernel(Provider provider, Ort::ConstKernelInfo info)
      : provider_(provider), scale_(info.GetAttribute<float>("scale")) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* ort_context) {
    return as_status([&] {
      Ort::KernelContext context(ort_context);
      const Inputs in(kAttention, context);
      const Shape q = in.shape_of_rank(0, "q", 4);
      const Shape cache = in.shape_of_rank(5, "past_key", 4);
      const int64_t B = q[0], S = q[2], D = q[3], K = cache[1], C = cache[2];
      tc_attention_args args{};
      args.dtype = in.dtype();
      args.batch = B, args.q_heads = q[1], args.kv_heads = K;
      args.tokens = S, args.cache_rows = C, args.head_dim = D;
      args.scale = scale_;
      args.q = in.data(0);
      args.k = in.data(1, "k", {B, K, S, D});
      args.v = in.data(2, "v", {B, K, S, D});
      args.kv_end = in.data<int32_t>(3, "kv_end", {B, S});
      args.slots = in.data<int64_t>(4, "slots", {B, S});
      args.past_key = in.data(5, "past_key", {B, K, C, D});
      args.past_value = in.data(6, "past_value", {B, K, C, D});
      args.y = context.GetOutput(0, q).GetTensorMutableRawData();
      args.present_key = context.GetOutput(1, cache).GetTensorMutableRawData();
      args.present_value = context.GetOutput(2, cache).GetTensorMutableRawData();
      run_attention(provider_, args, context);
    });
  }

 private:
  Provider provider_;
  float scale_;
};

struct AttentionContract {
  using Kernel = AttentionKernel;
  static constexpr const char* kName = kAttention;
  // q, k, v, kv_end, slots, past_key, past_value; nothing: the op's floating-point type.
  static constexpr std::array<std::optional<ONNXTensorElementDataType>, 7> kInputs = {
      std::nullopt, std::nullopt, std::nullopt, kInt32, kInt64, std::nullopt, std::nullopt};
  // y, present_key, present_value: each of the shape of an input.
  static constexpr std::array<size_t, 3> kOutputShapes = {0, 5, 6};
};

// --- TcDualRope --------------------------------------------------------------------------------

constexpr const char* kDualRope = "TcDualRope";

// An attribute that may be left out. As an integer it is there, but not to be read as a float.
float attribute_or(const OrtKernelInfo* info, const char* name, float absent) {
  float value = absent;
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_float(info, name, &value));
  if (status.IsOK()) return value;
  int64_t integer;
  if (Ort::Status(Ort::GetApi().KernelInfoGetAttribute_int64(info, name, &integer)).IsOK()) {
    fail(std::string(kDualRope) + ": " + name + " is an integer, expected a float");
  }
  return absent;
}

class DualRopeKernel {
 public:
  DualRopeKernel(Provider provider, Ort::ConstKernelInfo info)
      : provider_(provider),
        gamma_(info.GetAttribute<float>("gamma")),
        attention_factor_(attribute_or(info, "attention_factor", 1.0f)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* ort_context) {
    return as_status([&] {
      Ort::KernelContext context(ort_context);
      const Inputs in(kDualRope, context);
      const Shape x = in.shape_of_rank(0, "x", 4);
      const Shape frequencies = in.shape_of_rank(3, "inv_freq", 1);
      tc_dual_rope_args args{};
      args.dtype = in.dtype();
      args.batch = x[0], args.heads = x[1], args.tokens = x[2], args.head_dim = x[3];
      args.rotary_half = frequencies[0];
      args.gamma = gamma_;
      args.attention_factor = attention_factor_;
      args.x = in.data(0);
      args.position_ids = in.data<int64_t>(1, "position_ids", {x[0], x[2]});
      args.temporal_ids = in.data<int64_t>(2, "temporal_ids", {x[0], x[2]});
      args.inv_freq = in.data<float>(3);
      args.y = context.GetOutput(0, x).GetTensorMutableRawData();
      run(args, context);
    });
  }

 private:
  void run(const tc_dual_rope_args& args, Ort::KernelContext& context) const {
    if (provider_ == Provider::kCpu) {
      check(kDualRope, tc_cpu_dual_rope(&args, parallel_for, &context));
      return;
    }
#if defined(TC_WITH_CUDA)
    check(kDualRope, tc_cuda_dual_rope(&args, context.GetGPUComputeStream()));
#endif
  }

  Provider provider_;
  float gamma_;
  float attention_factor_;
};

struct DualRopeContract {
  using Kernel = DualRopeKernel;
  static constexpr const char* kName = kDualRope;
  // x, position_ids, temporal_ids, inv_freq
  static constexpr std::array<std::optional<ONNXTensorElementDataType>, 4> kInputs = {
      std::nullopt, kInt64, kInt64, kFloat32};
  static constexpr std::array<size_t, 1> kOutputShapes = {0};
};

// --- Registration ------------------------------------------------------------------------------

// True where each size of a tensor is a number or has a name. ONNX Runtime gives a size that has
// neither as -1, and no axes for a tensor of unknown rank; it would read both as true.
bool is_known(const OrtTensorTypeAndShapeInfo* info) {
  const Ort::ConstTensorTypeAndShapeInfo tensor(info);
  const Shape sizes = tensor.GetShape();
  std::vector<const char*> names(sizes.size());
  tensor.GetSymbolicDimensions(names.data(), names.size());
  bool known = !sizes.empty();
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    known = known && (sizes[axis] >= 0 || *names[axis] != '\0');
  }
  return known;
}

// Gives each output the type and the shape of an input, by the C interface: the C++ one loses the
// type and cannot name a size.
template <class Contract>
OrtStatusPtr infer_outputs(const OrtCustomOp*, OrtShapeInferContext* context) {
  return as_status([&] {
    const OrtApi& api = Ort::GetApi();
    for (size_t output = 0; output < Contract::kOutputShapes.size(); ++output) {
      const size_t source = Contract::kOutputShapes[output];
      OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
      Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, source, &info));
      if (!is_known(info)) continue;
      Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, output, info));
    }
  });
}

// One op for one floating-point type and one execution provider.
template <class Contract>
class Op : public Ort::CustomOpBase<Op<Contract>, typename Contract::Kernel, /*WithStatus=*/true> {
 public:
  Op(ONNXTensorElementDataType type, Provider provider) : type_(type), provider_(provider) {
    this->InferOutputShapeFn = infer_outputs<Contract>;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return as_status([&] {
      *kernel = new typename Contract::Kernel(provider_, Ort::ConstKernelInfo(info));
    });
  }
  const char* GetName() const { return Contract::kName; }
  const char* GetExecutionProviderType() const {
    return provider_ == Provider::kCpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
  }
  size_t GetInputTypeCount() const { return Contract::kInputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const {
    return Contract::kInputs[i].value_or(type_);
  }
  size_t GetOutputTypeCount() const { return Contract::kOutputShapes.size(); }
  ONNXTensorElementDataType GetOutputType(size_t) const { return type_; }

 private:
  ONNXTensorElementDataType type_;
  Provider provider_;
};

// Ops and domain live as long as the library: sessions keep pointers to them.
template <class Contract>
void add(Ort::CustomOpDomain& domain, Provider provider) {
  static std::vector<std::unique_ptr<Op<Contract>>> ops;
  for (const auto type : {kFloat32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    if (provider == Provider::kCuda && type == kFloat32) continue;  // attention has none
    ops.push_back(std::make_unique<Op<Contract>>(type, provider));
    domain.Add(ops.back().get());
  }
}

const Ort::CustomOpDomain& domain() {
  static const Ort::CustomOpDomain the_domain = [] {
    Ort::CustomOpDomain result(kDomain);
    add<AttentionContract>(result, Provider::kCpu);
    add<DualRopeContract>(result, Provider::kCpu);
#if defined(TC_WITH_CUDA)
    add<AttentionContract>(result, Provider::kCuda);
    add<DualRopeContract>(result, Provider::kCuda);
#endif
    return result;
  }();
  return the_domain;
}

}  // namespace

// What ONNX Runtime calls when the library is given to register_custom_ops_library.
extern "C" TC_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                               const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    const std::string message = "the tc ops need ONNX Runtime 1." +
                                std::to_string(ORT_API_VERSION) + " or later; this is " +
                                base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  Ort::InitApi(api);
  return as_status([&] { Ort::UnownedSessionOptions(options).Add(domain()); });
}
