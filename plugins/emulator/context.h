// SPDX-License-Identifier: Apache-2.0
//
// Switching between stacks: what a fiber is made of.

#ifndef TC_EMULATOR_CONTEXT_H
#define TC_EMULATOR_CONTEXT_H

#include <cstddef>

namespace emulator {

// A suspended flow of control. Its registers lie on its own stack; only the pointer is here.
struct Context {
  void* stack_pointer = nullptr;
};

// Suspend the running flow into `from` and resume `to`.
void switch_context(Context& from, const Context& to);

// A context that will call `entry`, which must never return, on the given stack.
Context make_context(char* stack, std::size_t bytes, void (*entry)());

}  // namespace emulator

#endif  // TC_EMULATOR_CONTEXT_H
