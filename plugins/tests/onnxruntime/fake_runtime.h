// SPDX-License-Identifier: Apache-2.0
//
// As much of ONNX Runtime as a custom op meets, on the host: its C interface over plain structs. It
// counts what it hands out to be given back. ONNX Runtime's C header is needed, and no library.
#ifndef TC_TESTS_FAKE_RUNTIME_H
#define TC_TESTS_FAKE_RUNTIME_H

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

// What ONNX Runtime's header declares and does not define.

struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};

struct OrtMemoryInfo {};

struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};

struct OrtValue {
  OrtTensorTypeAndShapeInfo tensor;
  void* data;
  OrtMemoryInfo memory{};
};

struct OrtKernelInfo {
  std::map<std::string, float> floats;
};

struct OrtKernelContext {
  std::vector<OrtValue> inputs;
  std::vector<OrtValue> outputs;  // their shapes are set by the op
  void* stream;
  size_t parallel_tasks = 0;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};

struct OrtSessionOptions {
  std::vector<const OrtCustomOpDomain*> domains;
};

namespace tc_test {

// What the runtime has handed out and not got back, and what it was asked for.
struct Runtime {
  std::set<const void*> live;    // statuses, shapes, allocators
  std::set<const void*> blocks;  // of allocators
  const OrtMemoryInfo* memory = nullptr;
  size_t allocated_bytes = 0;
  bool out_of_memory = false;
};
inline Runtime runtime;

template <class T>
T* hand_out(T* object) {
  runtime.live.insert(object);
  return object;
}

template <class T>
void take_back(T* object) {
  if (object == nullptr) return;
  if (runtime.live.erase(object) == 0) std::abort();
  delete object;
}

inline OrtStatus* status_of(OrtErrorCode code, const char* message) {
  return hand_out(new OrtStatus{code, message});
}

inline OrtApi make_api() {
  OrtApi api{};
  api.CreateStatus = [](OrtErrorCode code, const char* message) noexcept {
    return status_of(code, message);
  };
  api.GetErrorCode = [](const OrtStatus* status) noexcept { return status->code; };
  api.GetErrorMessage = [](const OrtStatus* status) noexcept { return status->message.c_str(); };
  api.ReleaseStatus = [](OrtStatus* status) { take_back(status); };

  api.CreateCustomOpDomain = [](const char* name, OrtCustomOpDomain** out) noexcept -> OrtStatus* {
    *out = new OrtCustomOpDomain{name, {}};
    return nullptr;
  };
  api.ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) { delete domain; };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain,
                              const OrtCustomOp* op) noexcept -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options,
                             OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
    options->domains.push_back(domain);
    return nullptr;
  };

  api.KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name,
                                        float* out) noexcept -> OrtStatus* {
    const auto found = info->floats.find(name);
    if (found == info->floats.end()) return status_of(ORT_FAIL, name);
    *out = found->second;
    return nullptr;
  };
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo*, const char* name,
                                        int64_t*) noexcept { return status_of(ORT_FAIL, name); };

  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index,
                                  const OrtValue** out) noexcept -> OrtStatus* {
    *out = &context->inputs.at(index);
    return nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t index, const int64_t* sizes,
                                   size_t rank, OrtValue** out) noexcept -> OrtStatus* {
    *out = &context->outputs.at(index);
    (*out)->tensor.shape.assign(sizes, sizes + rank);
    return nullptr;
  };
  api.KernelContext_GetGPUComputeStream = [](const OrtKernelContext* context,
                                             void** out) noexcept -> OrtStatus* {
    *out = context->stream;
    return nullptr;
  };
  api.KernelContext_ParallelFor = [](const OrtKernelContext* context, void (*task)(void*, size_t),
                                     size_t total, size_t, void* data) noexcept -> OrtStatus* {
    const_cast<OrtKernelContext*>(context)->parallel_tasks = total;
    for (size_t i = 0; i < total; ++i) task(data, i);
    return nullptr;
  };

  api.GetTensorTypeAndShape = [](const OrtValue* value,
                                 OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
    *out = hand_out(new OrtTensorTypeAndShapeInfo(value->tensor));
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { take_back(info); };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info,
                                ONNXTensorElementDataType* out) noexcept -> OrtStatus* {
    *out = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info,
                              size_t* out) noexcept -> OrtStatus* {
    *out = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out,
                         size_t rank) noexcept -> OrtStatus* {
    std::copy_n(info->shape.begin(), rank, out);
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue* value, void** out) noexcept -> OrtStatus* {
    *out = value->data;
    return nullptr;
  };
  api.GetTensorMemoryInfo = [](const OrtValue* value,
                               const OrtMemoryInfo** out) noexcept -> OrtStatus* {
    *out = &value->memory;
    return nullptr;
  };

  api.KernelContext_GetAllocator = [](const OrtKernelContext*, const OrtMemoryInfo* memory,
                                      OrtAllocator** out) noexcept -> OrtStatus* {
    runtime.memory = memory;
    *out = hand_out(new OrtAllocator{});
    return nullptr;
  };
  api.ReleaseAllocator = [](OrtAllocator* allocator) { take_back(allocator); };
  api.AllocatorAlloc = [](OrtAllocator*, size_t bytes, void** out) noexcept -> OrtStatus* {
    if (runtime.out_of_memory) return status_of(ORT_RUNTIME_EXCEPTION, "no memory is left");
    runtime.allocated_bytes = bytes;
    *out = new char[bytes];
    runtime.blocks.insert(*out);
    return nullptr;
  };
  api.AllocatorFree = [](OrtAllocator* allocator, void* block) noexcept -> OrtStatus* {
    if (runtime.live.count(allocator) == 0 || runtime.blocks.erase(block) == 0) std::abort();
    delete[] static_cast<char*>(block);
    return nullptr;
  };
  return api;
}

inline const OrtApi api = make_api();

// What RegisterCustomOps gets: a runtime of the version that the headers are of.
inline const OrtApiBase kThisRuntime = {
    [](uint32_t version) noexcept { return version <= ORT_API_VERSION ? &api : nullptr; },
    []() noexcept { return "this one"; },
};

// One that has an older interface only.
inline const OrtApiBase kOlderRuntime = {
    [](uint32_t version) noexcept { return version <= 16 ? &api : nullptr; },
    []() noexcept { return "1.16.3"; },
};

}  // namespace tc_test

#endif  // TC_TESTS_FAKE_RUNTIME_H
