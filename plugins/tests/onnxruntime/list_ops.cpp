// SPDX-License-Identifier: Apache-2.0
//
// The ops that a library registers, one a line: provider, name, number of its floating-point type.
// Usage: list_ops LIBRARY

#include <dlfcn.h>

#include <cstdio>

#include "fake_runtime.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: list_ops LIBRARY\n");
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  void* entry = library != nullptr ? dlsym(library, "RegisterCustomOps") : nullptr;
  if (entry == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  OrtSessionOptions options;
  const auto register_ops =
      reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*)>(entry);
  if (const OrtStatus* status = register_ops(&options, &tc_test::kThisRuntime)) {
    std::fprintf(stderr, "%s\n", status->message.c_str());
    return 1;
  }
  for (const OrtCustomOpDomain* domain : options.domains) {
    for (const OrtCustomOp* op : domain->ops) {
      std::printf("%s %s.%s %d\n", op->GetExecutionProviderType(op), domain->name.c_str(),
                  op->GetName(op), op->GetInputType(op, 0));
    }
  }
}
