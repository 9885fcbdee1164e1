// SPDX-License-Identifier: Apache-2.0
//
// The ops of domain tc as custom ops of ONNX Runtime. Names, order, axes,
// types and attributes are those of tc_contract.h. The work is done on ONNX Runtime's own threads
// (or, in a CUDA build, stream).
//
// An output that the caller bound to the buffer of an input (I/O binding: present_key to past_key)
// is recognised by its address: the cache is then written in place and nothing is copied.
//
// Axes: B batch, H query heads, K key/value heads, S tokens, C cache rows, D head size, R half of
// the rotated channels.

#include <memory>
#include <string>
#include <vector>

#include "call.h"
#include "tc_contract.h"
#include "tc_kernels.h"

namespace tc::ort {

namespace {

enum class Provider { kCpu, kCuda };

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

ONNXTensorElementDataType onnx_type(tc_dtype type) {
  switch (type) {
    case TC_FLOAT16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case TC_BFLOAT16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case TC_FLOAT32:
      break;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

// `float_type` is what T stands for.
ONNXTensorElementDataType onnx_type(contract::Type type, tc_dtype float_type) {
  switch (type) {
    case contract::Type::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case contract::Type::kInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case contract::Type::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case contract::Type::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case contract::Type::kT:
      break;
  }
  return onnx_type(float_type);
}

void parallel_for(void* context, size_t n, void (*task)(void*, size_t), void* data) {
  static_cast<Ort::KernelContext*>(context)->ParallelFor(task, n, /*num_batch=*/0, data);
}

// --- TcBlockCausalAttention, and the same over a cache in int8 -----------------------------------

// What differs between the two: the C functions of each, and where the cache's pointers go.
struct Attention {
  using Contract = contract::TcBlockCausalAttention;
  using Args = tc_attention_args;
  static constexpr auto* kOnCpu = tc_cpu_block_causal_attention;
#if defined(TC_WITH_CUDA)
  static constexpr auto* kWorkspace = tc_cuda_block_causal_attention_workspace;
  static constexpr auto* kOnCuda = tc_cuda_block_causal_attention;
#endif

  static void take_cache(Args& args, Ort::KernelContext& context, const Inputs<Contract>& in) {
    args.past_key = in.data(Contract::kPastKey);
    args.past_value = in.data(Contract::kPastValue);
    args.present_key = output(context, in, Contract::kPresentKey);
    args.present_value = output(context, in, Contract::kPresentValue);
  }
};

struct AttentionInt8 {
  using Contract = contract::TcBlockCausalAttentionInt8;
  using Args = tc_attention_int8_args;
  static constexpr auto* kOnCpu = tc_cpu_block_causal_attention_int8;
#if defined(TC_WITH_CUDA)
  static constexpr auto* kWorkspace = tc_cuda_block_causal_attention_int8_workspace;
  static constexpr auto* kOnCuda = tc_cuda_block_causal_attention_int8;
#endif

  static void take_cache(Args& args, Ort::KernelContext& context, const Inputs<Contract>& in) {
    const auto codes = [&](size_t index) {
      return static_cast<int8_t*>(output(context, in, index));
    };
    const auto scales = [&](size_t index) {
      return static_cast<float*>(output(context, in, index));
    };
    args.past_key = in.template data<int8_t>(Contract::kPastKey);
    args.past_value = in.template data<int8_t>(Contract::kPastValue);
    args.past_key_scale = in.template data<float>(Contract::kPastKeyScale);
    args.past_value_scale = in.template data<float>(Contract::kPastValueScale);
    args.present_key = codes(Contract::kPresentKey);
    args.present_value = codes(Contract::kPresentValue);
    args.present_key_scale = scales(Contract::kPresentKeyScale);
    args.present_value_scale = scales(Contract::kPresentValueScale);
  }
};

template <class Kind>
void run_attention(Provider provider, const typename Kind::Args& args,
                   Ort::KernelContext& context) {
  if (provider == Provider::kCpu) {
    check(Kind::Contract::kName, Kind::kOnCpu(&args, parallel_for, &context));
    return;
  }
#if defined(TC_WITH_CUDA)
  const OrtApi& api = Ort::GetApi();
  const size_t bytes = Kind::kWorkspace(&args);
  const Ort::ConstMemoryInfo memory = context.GetInput(0).GetTensorMemoryInfo();
  const std::unique_ptr<OrtAllocator, decltype(api.ReleaseAllocator)> ours(
      context.GetAllocator(*memory), api.ReleaseAllocator);
  Ort::UnownedAllocator allocator(ours.get());
  const auto release = [&](void* block) { allocator.Free(block); };
  const std::unique_ptr<void, decltype(release)> workspace(
      bytes > 0 ? allocator.Alloc(bytes) : nullptr, release);
  check(Kind::Contract::kName,
        Kind::kOnCuda(&args, workspace.get(), bytes, context.GetGPUComputeStream()));
#endif
}

template <class Kind>
class AttentionKernel {
 public:
  using Contract = typename Kind::Contract;

  AttentionKernel(tc_dtype dtype, Provider provider, Ort::ConstKernelInfo info)
      : dtype_(dtype), provider_(provider), scale_(attribute<Contract>(info, Contract::kScale)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* ort_context) {
    return as_status([&] {
      Ort::KernelContext context(ort_context);
      const Inputs<Contract> in(context, {Contract::kQ, Contract::kPastKey});
      typename Kind::Args args{};
      args.dtype = dtype_;
      args.batch = in['B'], args.q_heads = in['H'], args.kv_heads = in['K'];
      args.tokens = in['S'], args.cache_rows = in['C'], args.head_dim = in['D'];
      args.scale = scale_;
      args.q = in.data(Contract::kQ);
      args.k = in.data(Contract::kK);
      args.v = in.data(Contract::kV);
      args.kv_end = in.template data<int32_t>(Contract::kKvEnd);
      args.slots = in.template data<int64_t>(Contract::kSlots);
      args.y = output(context, in, Contract::kY);
      Kind::take_cache(args, context, in);
      run_attention<Kind>(provider_, args, context);
    });
  }

 private:
  tc_dtype dtype_;
  Provider provider_;
  float scale_;
};

// --- TcDualRope --------------------------------------------------------------------------------

using DualRope = contract::TcDualRope;

class DualRopeKernel {
 public:
  using Contract = DualRope;

  DualRopeKernel(tc_dtype dtype, Provider provider, Ort::ConstKernelInfo info)
      : dtype_(dtype),
        provider_(provider),
        gamma_(attribute<Contract>(info, Contract::kGamma)),
        attention_factor_(attribute<Contract>(info, Contract::kAttentionFactor)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* ort_context) {
    return as_status([&] {
      Ort::KernelContext context(ort_context);
      const Inputs<Contract> in(context, {Contract::kX, Contract::kInvFreq});
      tc_dual_rope_args args{};
      args.dtype = dtype_;
      args.batch = in['B'], args.heads = in['H'], args.tokens = in['S'], args.head_dim = in['D'];
      args.rotary_half = in['R'];
      args.gamma = gamma_;
      args.attention_factor = attention_factor_;
      args.x = in.data(Contract::kX);
      args.position_ids = in.data<int64_t>(Contract::kPositionIds);
      args.temporal_ids = in.data<int64_t>(Contract::kTemporalIds);
      args.inv_freq = in.data<float>(Contract::kInvFreq);
      args.y = output(context, in, Contract::kY);
      run(args, context);
    });
  }

 private:
  void run(const tc_dual_rope_args& args, Ort::KernelContext& context) const {
    if (provider_ == Provider::kCpu) {
      check(Contract::kName, tc_cpu_dual_rope(&args, parallel_for, &context));
      return;
    }
#if defined(TC_WITH_CUDA)
    check(Contract::kName, tc_cuda_dual_rope(&args, context.GetGPUComputeStream()));
#endif
  }

  tc_dtype dtype_;
  Provider provider_;
  float gamma_;
  float attention_factor_;
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
    for (size_t output = 0; output < Contract::kOutputs.size(); ++output) {
      const size_t source = Contract::kOutputs[output].like;
      OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
      Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, source, &info));
      if (!is_known(info)) continue;
      Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, output, info));
    }
  });
}

// The op of a kernel, for one floating-point type and one execution provider.
template <class Kernel>
class Op : public Ort::CustomOpBase<Op<Kernel>, Kernel, /*WithStatus=*/true> {
 public:
  using Contract = typename Kernel::Contract;

  Op(tc_dtype dtype, Provider provider) : dtype_(dtype), provider_(provider) {
    this->InferOutputShapeFn = infer_outputs<Contract>;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return as_status([&] {
      *kernel = new Kernel(dtype_, provider_, Ort::ConstKernelInfo(info));
    });
  }
  const char* GetName() const { return Contract::kName; }
  const char* GetExecutionProviderType() const {
    return provider_ == Provider::kCpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
  }
  size_t GetInputTypeCount() const { return Contract::kInputs.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const {
    return onnx_type(Contract::kInputs[i].type, dtype_);
  }
  size_t GetOutputTypeCount() const { return Contract::kOutputs.size(); }
  ONNXTensorElementDataType GetOutputType(size_t i) const {
    return GetInputType(Contract::kOutputs[i].like);
  }

 private:
  tc_dtype dtype_;
  Provider provider_;
};

// Ops and domain live as long as the library: sessions keep pointers to them.
template <class Kernel>
void add(Ort::CustomOpDomain& domain, Provider provider) {
  static std::vector<std::unique_ptr<Op<Kernel>>> ops;
  for (const tc_dtype dtype : contract::kFloatTypes) {
    if (provider == Provider::kCuda && dtype == TC_FLOAT32) continue;  // attention has none
    ops.push_back(std::make_unique<Op<Kernel>>(dtype, provider));
    domain.Add(ops.back().get());
  }
}

template <class... Kernels>
void add_all(Ort::CustomOpDomain& domain, Provider provider) {
  static_assert(sizeof...(Kernels) == contract::kOpCount, "every op has a kernel");
  (add<Kernels>(domain, provider), ...);
}

const Ort::CustomOpDomain& domain() {
  static const Ort::CustomOpDomain the_domain = [] {
    Ort::CustomOpDomain result(contract::kDomain);
    using Plain = AttentionKernel<Attention>;
    using Int8 = AttentionKernel<AttentionInt8>;
    add_all<Plain, Int8, DualRopeKernel>(result, Provider::kCpu);
#if defined(TC_WITH_CUDA)
    add_all<Plain, Int8, DualRopeKernel>(result, Provider::kCuda);
#endif
    return result;
  }();
  return the_domain;
}

}  // namespace

}  // namespace tc::ort

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
  return tc::ort::as_status([&] { Ort::UnownedSessionOptions(options).Add(tc::ort::domain()); });
}
