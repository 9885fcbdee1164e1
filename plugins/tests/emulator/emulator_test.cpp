// SPDX-License-Identifier: Apache-2.0
//
// The emulator itself: each rule that it watches has a small kernel that breaks it, beside one
// that keeps it; and the warp instructions do what the PTX ISA says.

#include <string>

#include "check.h"
#include "device.cuh"

namespace {

using tc::Half;

struct Nothing {};
using Kernel = void (*)(Nothing);
constexpr int kThreads = 64;

float* shared_floats() { return reinterpret_cast<float*>(tc::dynamic_shared_memory()); }

alignas(16) float source[1024];
float sink[1024];

// Kernels that break one rule each.

void race_on_read(Nothing) {
  tc::store_shared(shared_floats() + threadIdx.x, 1.0f);
  sink[0] = tc::load_shared(shared_floats() + (threadIdx.x + 1) % kThreads);
}
void race_on_write(Nothing) {
  sink[0] = tc::load_shared(shared_floats() + (threadIdx.x + 1) % kThreads);
  tc::store_shared(shared_floats() + threadIdx.x, 1.0f);
}
void race_between_writes(Nothing) { tc::store_shared(shared_floats() + threadIdx.x / 2, 1.0f); }
void missing_wait(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source + threadIdx.x * 4, true);
  tc::commit_copies();
  __syncthreads();
  sink[0] = tc::load_shared(shared_floats() + threadIdx.x * 4);
  tc::wait_copies<0>();
}
void wait_for_an_older_group(Nothing) {
  for (int i = 0; i < 2; ++i) {
    tc::copy_async_16(shared_floats() + (i * kThreads + threadIdx.x) * 4, source, true);
    tc::commit_copies();
  }
  tc::wait_copies<1>();
  sink[0] = tc::load_shared(shared_floats() + (kThreads + threadIdx.x) * 4);
  tc::wait_copies<0>();
}
void missing_barrier_after_wait(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source, true);
  tc::commit_copies();
  tc::wait_copies<0>();
  sink[0] = tc::load_shared(shared_floats() + (threadIdx.x + 1) % kThreads * 4);
}
void unfinished_copy(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source, true);
  tc::commit_copies();
}
void barrier_of_some(Nothing) {
  if (threadIdx.x < 40) __syncthreads();
}
void barriers_at_two_places(Nothing) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void collective_of_some(Nothing) {
  if (threadIdx.x % 32 < 31) tc::shuffle_xor(1, 1);
}
void two_collectives(Nothing) {
  std::uint32_t registers[4];
  if (threadIdx.x % 2 == 0) {
    tc::shuffle_xor(1, 1);
  } else {
    tc::load_matrix_x4(registers, tc::dynamic_shared_memory());
  }
}
void deadlock(Nothing) {
  if (threadIdx.x % 32 == 0) __syncthreads();
  tc::shuffle_xor(1, 1);
  __syncthreads();
}
void past_shared_memory(Nothing) { tc::store_shared(shared_floats() + 1024 + threadIdx.x, 1.0f); }
void misaligned_copy(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source + 1, true);
  tc::commit_copies();
  tc::wait_copies<0>();
}
void misaligned_small_copy(Nothing) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(source + threadIdx.x);
  tc::copy_async_4(shared_floats() + threadIdx.x, bytes + 2, true);
  tc::commit_copies();
  tc::wait_copies<0>();
}
void small_copies_of_one_word(Nothing) {
  tc::copy_async_4(shared_floats() + threadIdx.x / 2, source, true);
  tc::commit_copies();
  tc::wait_copies<0>();
}
void past_global_memory(Nothing) { tc::store_global(sink + 1000 + threadIdx.x, 1.0f); }
void write_to_input(Nothing) { tc::store_global(source + threadIdx.x, 1.0f); }
void read_past_input(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source + 1020 + threadIdx.x * 4, true);
  tc::commit_copies();
  tc::wait_copies<0>();
}

void small_copy_past_input(Nothing) {
  tc::copy_async_4(shared_floats() + threadIdx.x, source + 1000 + threadIdx.x, true);
  tc::commit_copies();
  tc::wait_copies<0>();
}

// A kernel that keeps them: copies through shared memory, and hands on to the next thread.
void sound(Nothing) {
  tc::copy_async_16(shared_floats() + threadIdx.x * 4, source + threadIdx.x * 4,
                    threadIdx.x % 2 == 0);
  float* words = shared_floats() + kThreads * 4;  // each beside that of another thread
  tc::copy_async_4(words + threadIdx.x, source + 1023 - threadIdx.x, threadIdx.x % 3 == 0);
  tc::commit_copies();
  tc::wait_copies<0>();
  __syncthreads();
  const int next = (threadIdx.x + 1) % kThreads;
  const float value = tc::load_shared(shared_floats() + next * 4);
  tc::store_global(sink + kThreads + threadIdx.x, tc::load_shared(words + next));
  __syncthreads();
  tc::store_shared(shared_floats() + threadIdx.x * 4, value);
  tc::store_global(sink + threadIdx.x, tc::shuffle_xor(value, 5));
}

tc_status run(Kernel kernel) {
  tc_emulator_forget_memory();
  tc_emulator_declare_memory(source, sizeof source, 0);
  tc_emulator_declare_memory(sink, sizeof sink, 1);
  const tc_status status = tc::launch(kernel, 2, kThreads, 4096, nullptr, Nothing{});
  tc_emulator_forget_memory();
  return status;
}

void expect_violation(const char* name, Kernel kernel, const char* message) {
  const tc_status status = run(kernel);
  const std::string found = tc_emulator_violation();
  if (status != TC_LAUNCH_FAILED || found.find(message) == std::string::npos) {
    fail("%s: expected '%s', found status %d and '%s'", name, message, status, found.c_str());
  }
}

void check_sound() {
  for (int i = 0; i < 1024; ++i) source[i] = static_cast<float>(i);
  if (!went_well(run(&sound), "sound")) return;
  for (int i = 0; i < kThreads; ++i) {
    const int from = ((i ^ 5) + 1) % kThreads;
    const float expected = from % 2 == 0 ? source[from * 4] : 0.0f;
    if (sink[i] != expected) fail("sound: thread %d has %g, not %g", i, sink[i], expected);
    const int next = (i + 1) % kThreads;
    const float word = next % 3 == 0 ? source[1023 - next] : 0.0f, found = sink[kThreads + i];
    if (found != word) fail("sound: thread %d has a word %g, not %g", i, found, word);
  }
}

// a [16, 16] and b [16, 8] go through shared memory and ldmatrix, as in the attention kernels.
void multiply(Nothing) {
  auto* a = reinterpret_cast<Half*>(tc::dynamic_shared_memory());
  Half* b = a + 256;  // rows of b^T [8, 16], then b itself [16, 8]
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) {
    tc::store_shared(reinterpret_cast<std::uint32_t*>(a) + i,
                     tc::pack<Half>(source[2 * i], source[2 * i + 1]));
  }
  __syncthreads();
  std::uint32_t fragment_a[4], fragment_b[4], fragment_bt[4];
  tc::load_matrix_x4(fragment_a, a + lane % 16 * 16 + lane / 16 * 8);
  tc::load_matrix_x4(fragment_b, b + lane % 8 * 16 + lane / 8 % 2 * 8);
  tc::load_matrix_x4_transposed(fragment_bt, b + 128 + lane % 16 * 8);
  float c[4] = {1.0f, 2.0f, 3.0f, 4.0f}, ct[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  tc::mma<Half>(c, fragment_a, fragment_b[0], fragment_b[1]);
  tc::mma<Half>(ct, fragment_a, fragment_bt[0], fragment_bt[1]);
  for (int e = 0; e < 4; ++e) {
    const int place = (lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2;
    tc::store_global(sink + place, c[e]);
    tc::store_global(sink + 128 + place, ct[e]);
  }
}

void check_multiply() {
  std::mt19937 random(5);
  for (int i = 0; i < 384; ++i) source[i] = static_cast<float>(int(random() % 17) - 8);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) source[384 + k * 8 + n] = source[256 + n * 16 + k];
  }
  const tc_status status = tc::launch(&multiply, 1, 32, 4096, nullptr, Nothing{});
  if (!went_well(status, "multiply")) return;
  for (int i = 0; i < 128; ++i) {
    const int row = i / 8, column = i % 8;
    float expected = 1.0f + row / 8 * 2 + column % 2;
    for (int k = 0; k < 16; ++k) {
      expected += source[row * 16 + k] * source[256 + column * 16 + k];
    }
    if (sink[i] != expected || sink[128 + i] != expected) {
      fail("multiply: c[%d, %d] is %g and %g, not %g", row, column, sink[i], sink[128 + i],
           expected);
    }
  }
}

// Rounding to 16 bits: ties to even, and what overflows or is no number.
void check_rounding() {
  const struct {
    float value;
    std::uint16_t half, brain;
  } cases[] = {{1.0f, 0x3c00, 0x3f80},          {1.00048828125f, 0x3c00, 0x3f80},
               {1.00146484375f, 0x3c02, 0x3f80}, {1.00390625f, 0x3c04, 0x3f80},
               {1.01171875f, 0x3c0c, 0x3f82},    {65520.0f, 0x7c00, 0x4780},
               {-0.0f, 0x8000, 0x8000},          {5.9604645e-8f, 0x0001, 0x3380}};
  for (const auto& c : cases) {
    const auto half = tc::from_float<Half>(c.value).bits;
    const auto brain = tc::from_float<tc::BFloat16>(c.value).bits;
    if (half != c.half || brain != c.brain) {
      fail("rounding %g: %04x %04x, not %04x %04x", c.value, half, brain, c.half, c.brain);
    }
  }
  if (!std::isnan(tc::to_float(tc::from_float<tc::BFloat16>(std::nanf(""))))) fail("a lost NaN");
}

}  // namespace

int main() {
  for (const Schedule& schedule : kSchedules) {
    tc_emulator_set_schedule(schedule.order, schedule.seed);
    expect_violation("race_on_read", &race_on_read, "data race");
    expect_violation("race_on_write", &race_on_write, "data race");
    expect_violation("race_between_writes", &race_between_writes, "data race");
    expect_violation("missing_wait", &missing_wait, "missing wait");
    expect_violation("wait_for_an_older_group", &wait_for_an_older_group, "missing wait");
    expect_violation("missing_barrier_after_wait", &missing_barrier_after_wait, "data race");
    expect_violation("unfinished_copy", &unfinished_copy, "unfinished copy");
    expect_violation("barrier_of_some", &barrier_of_some, "divergence");
    expect_violation("barriers_at_two_places", &barriers_at_two_places, "divergence");
    expect_violation("collective_of_some", &collective_of_some, "divergence");
    expect_violation("two_collectives", &two_collectives, "divergence");
    expect_violation("deadlock", &deadlock, "deadlock");
    expect_violation("past_shared_memory", &past_shared_memory, "out of bounds");
    expect_violation("misaligned_copy", &misaligned_copy, "misaligned");
    expect_violation("misaligned_small_copy", &misaligned_small_copy, "misaligned");
    expect_violation("small_copies_of_one_word", &small_copies_of_one_word, "data race");
    expect_violation("small_copy_past_input", &small_copy_past_input, "out of bounds: read");
    expect_violation("past_global_memory", &past_global_memory, "out of bounds: write");
    expect_violation("write_to_input", &write_to_input, "out of bounds: write");
    expect_violation("read_past_input", &read_past_input, "out of bounds: read");
    check_sound();
    check_multiply();
  }
  check_rounding();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
