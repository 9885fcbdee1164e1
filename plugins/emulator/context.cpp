// SPDX-License-Identifier: Apache-2.0
//
// Save the callee-saved registers on this stack, take the other stack, load its registers, return.
// A dozen instructions: ucontext, which also saves the signal mask by a system call, is several
// times slower.

#include "context.h"

#include <cstdint>
#include <cstring>

extern "C" void tc_emulator_switch(void** save, void* load);

#if defined(__x86_64__)

asm(R"(
.text
.globl tc_emulator_switch
.hidden tc_emulator_switch
.type tc_emulator_switch, @function
tc_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tc_emulator_switch, . - tc_emulator_switch
)");

#elif defined(__aarch64__)

asm(R"(
.text
.globl tc_emulator_switch
.hidden tc_emulator_switch
.type tc_emulator_switch, %function
tc_emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size tc_emulator_switch, . - tc_emulator_switch
)");

#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

namespace emulator {

void switch_context(Context& from, const Context& to) {
  tc_emulator_switch(&from.stack_pointer, to.stack_pointer);
}

Context make_context(char* stack, std::size_t bytes, void (*entry)()) {
  const auto top = (reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t{15};
  void** frame;
#if defined(__x86_64__)
  // From the top: a return address of the entry (none), the entry, six saved registers.
  constexpr int kWords = 8, kEntry = 6;
  frame = reinterpret_cast<void**>(top) - kWords;
#else
  // The 160 bytes that the switch loads; the entry stands in for the link register.
  constexpr int kWords = 20, kEntry = 11;
  frame = reinterpret_cast<void**>(top) - kWords;
#endif
  std::memset(frame, 0, kWords * sizeof(void*));
  frame[kEntry] = reinterpret_cast<void*>(entry);
  return Context{frame};
}

}  // namespace emulator
