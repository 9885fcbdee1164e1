// SPDX-License-Identifier: Apache-2.0
//
// Entry points of the CPU implementation: arguments are checked, the cache is written, and the rest
// is cut into tasks that run on the caller's threads with the processor's best instruction set.

#include "tc_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isa_kernels.h"
#include "tc_contract.h"

namespace {

using tc_cpu::AttentionPlan;
using tc_cpu::IsaKernels;
using tc_cpu::RopePlan;

// --- Instruction sets --------------------------------------------------------------------------

struct Isa {
  tc_cpu_isa id;
  const char* name;
  const IsaKernels* kernels;
  bool available;
};

#if defined(__x86_64__) && !defined(TC_EMULATED_AMX)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// The matrix unit's registers are large: Linux keeps them only for a process that asks.
bool has_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // of the processor's extended states
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Isa* find_isa(tc_cpu_isa wanted) {
  // Best last.
  static const Isa kIsas[] = {
      {TC_ISA_PORTABLE, "portable", &tc_cpu::kPortable, true},
#if defined(TC_EMULATED_AMX)
      {TC_ISA_AMX, "amx", &tc_cpu::kAmx, true},
#elif defined(__x86_64__)
      {TC_ISA_AVX2, "avx2", &tc_cpu::kAvx2, has_avx2()},
      {TC_ISA_AVX512, "avx512", &tc_cpu::kAvx512, has_avx512()},
      {TC_ISA_AVX512_BF16, "avx512_bf16", &tc_cpu::kAvx512Bf16, has_avx512_bf16()},
      {TC_ISA_AMX, "amx", &tc_cpu::kAmx, has_amx()},
#endif
  };
  const Isa* found = nullptr;
  for (const Isa& isa : kIsas) {
    if (isa.available && (wanted == TC_ISA_BEST || wanted == isa.id)) found = &isa;
  }
  return found;
}

// --- Arguments ---------------------------------------------------------------------------------

bool known(tc_dtype dtype) {
  return dtype == TC_FLOAT32 || dtype == TC_FLOAT16 || dtype == TC_BFLOAT16;
}

int64_t bytes(tc_dtype dtype) { return dtype == TC_FLOAT32 ? 4 : 2; }

// Sizes that are positive, and whose product can be counted in bytes.
bool countable(std::initializer_list<int64_t> sizes) {
  int64_t product = sizeof(double);
  for (const int64_t size : sizes) {
    if (size <= 0 || __builtin_mul_overflow(product, size, &product)) return false;
  }
  return true;
}

bool none_null(std::initializer_list<const void*> pointers) {
  return std::find(pointers.begin(), pointers.end(), nullptr) == pointers.end();
}

tc_status check(const tc_attention_args& a) {
  if (!none_null({a.q, a.k, a.v, a.kv_end, a.slots, a.past_key, a.past_value, a.y, a.present_key,
                  a.present_value}) ||
      !countable({a.batch, a.q_heads, a.tokens, a.head_dim}) ||
      !countable({a.batch, a.kv_heads, a.cache_rows, a.head_dim}) || a.q_heads % a.kv_heads != 0 ||
      !std::isfinite(a.scale)) {
    return TC_INVALID_ARGUMENT;
  }
  // Cache rows are compared with kv_end, which is an int32.
  if (!known(a.dtype) || a.cache_rows > std::numeric_limits<int32_t>::max()) return TC_UNSUPPORTED;
  const auto outside = [&](int64_t slot) {
    return slot < tc::contract::kPadding || slot >= a.cache_rows;
  };
  if (std::any_of(a.slots, a.slots + a.batch * a.tokens, outside)) return TC_CACHE_OVERFLOW;
#ifndef NDEBUG
  const auto beyond = [&](int32_t end) { return end < 0 || end > a.cache_rows; };
  if (std::any_of(a.kv_end, a.kv_end + a.batch * a.tokens, beyond)) return TC_KV_END_OUT_OF_RANGE;
#endif
  return TC_OK;
}

// The part of the arguments that both kinds of cache have; pointers to a cache in int8 among them.
tc_attention_args common(const tc_attention_int8_args& a) {
  return {a.dtype,  a.batch, a.q_heads, a.kv_heads,  a.tokens,      a.cache_rows, a.head_dim,
          a.scale,  a.q,     a.k,       a.v,         a.kv_end,      a.slots,      a.past_key,
          a.past_value, a.y, a.present_key, a.present_value};
}

tc_status check(const tc_dual_rope_args* args) {
  if (args == nullptr) return TC_INVALID_ARGUMENT;
  const tc_dual_rope_args& a = *args;
  if (!none_null({a.x, a.position_ids, a.temporal_ids, a.inv_freq, a.y}) ||
      !countable({a.batch, a.heads, a.tokens, a.head_dim}) || a.rotary_half <= 0 ||
      a.rotary_half > a.head_dim / 2 || !std::isfinite(a.gamma) ||
      !std::isfinite(a.attention_factor)) {
    return TC_INVALID_ARGUMENT;
  }
  return known(a.dtype) ? TC_OK : TC_UNSUPPORTED;
}

// --- Tasks -------------------------------------------------------------------------------------

// Runs task(i) -> bool for i in [0, n) on the caller's threads; false when any task said so.
template <class Task>
bool run(tc_parallel_for parallel_for, void* context, int64_t n, const Task& task) {
  struct Shared {
    const Task& task;
    std::atomic<bool> done{true};
  } shared{task};
  parallel_for(
      context, static_cast<size_t>(n),
      [](void* data, size_t i) {
        Shared& s = *static_cast<Shared*>(data);
        if (!s.task(static_cast<int64_t>(i))) s.done = false;
      },
      &shared);
  return shared.done;
}

// The caller's thread alone, for work that is smaller than waking another.
void on_this_thread(void*, size_t n, void (*task)(void* data, size_t i), void* data) {
  for (size_t i = 0; i < n; ++i) task(data, i);
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a cache, of all heads, before and after the call.
struct CachePart {
  const void* past;
  void* present;
  int64_t row_bytes;

  char* row(int64_t index) const { return static_cast<char*>(present) + index * row_bytes; }

  // Unless both are the same buffer.
  void copy(int64_t first, int64_t rows) const {
    if (past == present) return;
    std::memcpy(row(first), static_cast<const char*>(past) + first * row_bytes, rows * row_bytes);
  }
};

// Brings the cache from past to present, a chunk of rows of one head a task: its parts are copied
// unless they are in place, then write(head, token, row) overwrites the rows of this call, counted
// over all heads. Slot -1 is left unwritten.
template <class Write>
bool write_cache(const tc_attention_args& a, std::initializer_list<CachePart> parts,
                 tc_parallel_for parallel_for, void* context, const Write& write) {
  constexpr int64_t kChunkRows = 4096;
  constexpr int64_t kFewTokens = 64;
  const bool copied = std::any_of(parts.begin(), parts.end(), [](const CachePart& part) {
    return part.past != part.present;
  });
  if (!copied && a.tokens <= kFewTokens) parallel_for = on_this_thread;
  const int64_t chunks = ceil_divide(a.cache_rows, kChunkRows);
  return run(parallel_for, context, a.batch * a.kv_heads * chunks, [&](int64_t i) {
    const int64_t head = i / chunks, first_row = head * a.cache_rows;
    const int64_t begin = i % chunks * kChunkRows;
    const int64_t end = std::min(begin + kChunkRows, a.cache_rows);
    for (const CachePart& part : parts) part.copy(first_row + begin, end - begin);
    const int64_t* slots = a.slots + head / a.kv_heads * a.tokens;
    for (int64_t token = 0; token < a.tokens; ++token) {
      if (slots[token] < begin || slots[token] >= end) continue;
      write(head * a.tokens + token, first_row + slots[token]);
    }
    return true;
  });
}

bool write_plain_cache(const tc_attention_args& a, tc_parallel_for parallel_for, void* context) {
  const int64_t row_bytes = a.head_dim * bytes(a.dtype);
  const CachePart keys{a.past_key, a.present_key, row_bytes};
  const CachePart values{a.past_value, a.present_value, row_bytes};
  const auto write = [&](int64_t from, int64_t row) {
    std::memcpy(keys.row(row), static_cast<const char*>(a.k) + from * row_bytes, row_bytes);
    std::memcpy(values.row(row), static_cast<const char*>(a.v) + from * row_bytes, row_bytes);
  };
  return write_cache(a, {keys, values}, parallel_for, context, write);
}

bool write_int8_cache(const tc_attention_int8_args& a, const IsaKernels& kernels,
                      tc_parallel_for parallel_for, void* context) {
  const int64_t row_bytes = a.head_dim * bytes(a.dtype);
  const auto write = [&](int64_t from, int64_t row) {
    kernels.quantize(a.dtype, static_cast<const char*>(a.k) + from * row_bytes, a.head_dim,
                     a.present_key + row * a.head_dim, a.present_key_scale + row);
    kernels.quantize(a.dtype, static_cast<const char*>(a.v) + from * row_bytes, a.head_dim,
                     a.present_value + row * a.head_dim, a.present_value_scale + row);
  };
  return write_cache(common(a),
                     {{a.past_key, a.present_key, a.head_dim},
                      {a.past_value, a.present_value, a.head_dim},
                      {a.past_key_scale, a.present_key_scale, sizeof(float)},
                      {a.past_value_scale, a.present_value_scale, sizeof(float)}},
                     parallel_for, context, write);
}

AttentionPlan make_plan(const tc_attention_args& a) {
  // So many that many threads find work, and none waits long for the last one.
  constexpr int64_t kEnoughTasks = 32;
  AttentionPlan plan{};
  plan.args = a;
  plan.group = a.q_heads / a.kv_heads;
  plan.rows = a.tokens * plan.group;
  // The more rows a tile has, the less often its keys are read; half as many do where there would
  // be few tiles.
  plan.tiles = ceil_divide(plan.rows, AttentionPlan::kMostTileRows);
  if (a.batch * a.kv_heads * plan.tiles < kEnoughTasks) {
    plan.tiles = ceil_divide(plan.rows, AttentionPlan::kMostTileRows / 2);
  }
  plan.tile_rows = ceil_divide(ceil_divide(plan.rows, plan.tiles), AttentionPlan::kRowStep) *
                   AttentionPlan::kRowStep;
  plan.tiles = ceil_divide(plan.rows, plan.tile_rows);
  // Keys are split when there are few heads and rows, as in a decode step; a part is long enough
  // that combining the parts costs nothing beside it.
  constexpr int64_t kLeastKeys = 5 * AttentionPlan::kKeyBlock;
  const int64_t largest_end = *std::max_element(a.kv_end, a.kv_end + a.batch * a.tokens);
  const int64_t longest = std::clamp<int64_t>(largest_end, 1, a.cache_rows);
  const int64_t tasks = a.batch * a.kv_heads * plan.tiles;
  const int64_t wanted = std::clamp<int64_t>(ceil_divide(kEnoughTasks, tasks), 1,
                                             ceil_divide(longest, kLeastKeys));
  plan.keys_a_split = ceil_divide(ceil_divide(longest, wanted), AttentionPlan::kKeyBlock) *
                      AttentionPlan::kKeyBlock;
  plan.splits = ceil_divide(longest, plan.keys_a_split);
  return plan;
}

// Attends to a cache; write() writes it first, once there is memory for the rest.
template <class Write>
tc_status attend(AttentionPlan plan, const IsaKernels& kernels, tc_parallel_for parallel_for,
                 void* context, const Write& write) {
  const int64_t tiles = plan.args.batch * plan.args.kv_heads * plan.tiles;
  std::unique_ptr<float[]> partials;
  if (plan.splits > 1) {
    partials.reset(new (std::nothrow) float[tiles * plan.splits * plan.partial_floats()]);
    if (!partials) return TC_OUT_OF_MEMORY;
    plan.partials = partials.get();
  }
  write();
  bool done = run(parallel_for, context, tiles * plan.splits,
                  [&](int64_t task) { return kernels.attend(plan, task); });
  if (done && plan.splits > 1) {
    done = run(on_this_thread, nullptr, tiles,
               [&](int64_t tile) { return kernels.combine(plan, tile); });
  }
  return done ? TC_OK : TC_OUT_OF_MEMORY;
}

}  // namespace

extern "C" {

const char* tc_cpu_isa_name(tc_cpu_isa isa) {
  const Isa* found = find_isa(isa);
  return found != nullptr ? found->name : nullptr;
}

const char* tc_ops_version(void) { return TC_OPS_VERSION; }

tc_status tc_cpu_block_causal_attention_on(tc_cpu_isa isa, const tc_attention_args* args,
                                           tc_parallel_for parallel_for, void* context) {
  if (args == nullptr) return TC_INVALID_ARGUMENT;
  const tc_status status = check(*args);
  if (status != TC_OK) return status;
  if (parallel_for == nullptr) return TC_INVALID_ARGUMENT;
  const Isa* found = find_isa(isa);
  if (found == nullptr) return TC_UNSUPPORTED;
  return attend(make_plan(*args), *found->kernels, parallel_for, context,
                [&] { write_plain_cache(*args, parallel_for, context); });
}

tc_status tc_cpu_block_causal_attention_int8_on(tc_cpu_isa isa, const tc_attention_int8_args* args,
                                                tc_parallel_for parallel_for, void* context) {
  if (args == nullptr || !none_null({args->past_key_scale, args->past_value_scale,
                                     args->present_key_scale, args->present_value_scale})) {
    return TC_INVALID_ARGUMENT;
  }
  const tc_status status = check(common(*args));
  if (status != TC_OK) return status;
  if (parallel_for == nullptr) return TC_INVALID_ARGUMENT;
  const Isa* found = find_isa(isa);
  if (found == nullptr) return TC_UNSUPPORTED;
  AttentionPlan plan = make_plan(common(*args));
  plan.key_scales = args->present_key_scale;
  plan.value_scales = args->present_value_scale;
  return attend(plan, *found->kernels, parallel_for, context,
                [&] { write_int8_cache(*args, *found->kernels, parallel_for, context); });
}

tc_status tc_cpu_dual_rope_on(tc_cpu_isa isa, const tc_dual_rope_args* args,
                              tc_parallel_for parallel_for, void* context) {
  const tc_status status = check(args);
  if (status != TC_OK) return status;
  if (parallel_for == nullptr) return TC_INVALID_ARGUMENT;
  const Isa* found = find_isa(isa);
  if (found == nullptr) return TC_UNSUPPORTED;

  RopePlan plan{*args, /*tokens_a_task=*/64, /*tasks_a_batch=*/0};
  plan.tasks_a_batch = ceil_divide(args->tokens, plan.tokens_a_task);
  const bool done = run(parallel_for, context, args->batch * plan.tasks_a_batch,
                        [&](int64_t task) { return found->kernels->rotate(plan, task); });
  return done ? TC_OK : TC_OUT_OF_MEMORY;
}

tc_status tc_cpu_block_causal_attention(const tc_attention_args* args, tc_parallel_for parallel_for,
                                        void* context) {
  return tc_cpu_block_causal_attention_on(TC_ISA_BEST, args, parallel_for, context);
}

tc_status tc_cpu_block_causal_attention_int8(const tc_attention_int8_args* args,
                                             tc_parallel_for parallel_for, void* context) {
  return tc_cpu_block_causal_attention_int8_on(TC_ISA_BEST, args, parallel_for, context);
}

tc_status tc_cpu_dual_rope(const tc_dual_rope_args* args, tc_parallel_for parallel_for,
                           void* context) {
  return tc_cpu_dual_rope_on(TC_ISA_BEST, args, parallel_for, context);
}

}  // extern "C"
