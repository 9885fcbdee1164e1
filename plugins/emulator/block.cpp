// SPDX-License-Identifier: Apache-2.0

#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "tc_emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 64 * 1024;  // a multiple of every page size in use

// 0xFF in every byte is a NaN in every floating-point type: what a kernel reads by mistake shows.
constexpr int kPoison = 0xFF;

struct Range {
  const unsigned char* begin;
  const unsigned char* end;
  bool writable;
};

// Stacks live as long as their OS thread, so that a launch costs no system calls.
class Stacks {
 public:
  char* get(std::size_t count) {
    if (count > count_) {
      release();
      count_ = count;
      void* memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) {
        count_ = 0;
        return nullptr;
      }
      memory_ = static_cast<char*>(memory);
      for (std::size_t i = 0; i < count_; ++i) {
        mprotect(memory_ + i * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
      }
    }
#if defined(__SANITIZE_ADDRESS__)
    // A fiber that was abandoned leaves the red zones of its frames behind.
    __asan_unpoison_memory_region(memory_, bytes());
#endif
    return memory_;
  }
  ~Stacks() { release(); }

 private:
  std::size_t bytes() const { return count_ * (kStackBytes + kGuardBytes); }
  void release() {
    if (memory_ != nullptr) munmap(memory_, bytes());
    memory_ = nullptr;
  }

  char* memory_ = nullptr;
  std::size_t count_ = 0;
};

thread_local Block* block_of_this_thread = nullptr;
thread_local Stacks stacks;
thread_local tc_schedule schedule = TC_SCHEDULE_FORWARD;
thread_local std::mt19937_64 random_bits;
thread_local std::vector<Range> declared;
thread_local char violation[512] = "";

}  // namespace

Block& current_block() { return *block_of_this_thread; }

Block::Block(const Launch& launch)
    : launch_(launch),
      threads_(launch.threads),
      warps_(launch.threads / kWarpSize),
      words_(launch.shared_bytes / kWordBytes) {
  size.x = launch.threads;
  grid.x = launch.blocks;
  shared = static_cast<unsigned char*>(std::aligned_alloc(128, (launch.shared_bytes + 127) & ~127));
  block_of_this_thread = this;
}

Block::~Block() {
  std::free(shared);
  block_of_this_thread = nullptr;
}

void Block::reset(unsigned block) {
  index.x = block;
  running_ = static_cast<int>(launch_.threads);
  at_barrier_ = 0;
  epoch_ = 0;
  std::fill(warps_.begin(), warps_.end(), Warp{});
  std::fill(words_.begin(), words_.end(), Word{});
  std::memset(shared, kPoison, launch_.shared_bytes);
  char* memory = stacks.get(launch_.threads);
  for (unsigned i = 0; i < launch_.threads; ++i) {
    char* stack = memory + i * (kStackBytes + kGuardBytes) + kGuardBytes;
    threads_[i].context = make_context(stack, kStackBytes, &Block::fiber_main);
    threads_[i].index.x = i;
    threads_[i].state = Thread::State::kReady;
    threads_[i].copies.clear();
    threads_[i].open_group = 0;
  }
}

bool Block::run(unsigned block) {
  reset(block);
  thread = &threads_[next_ready(-1)];
  switch_context(main_, thread->context);
  return !violated_;
}

void Block::fiber_main() {
  Block& block = current_block();
  block.launch_.kernel(block.launch_.closure);
  block.finish_thread();
}

void Block::finish_thread() {
  if (!thread->copies.empty()) {
    violate("unfinished copy: the thread ends with a cp.async in flight");
  }
  if (warps_[thread->index.x / kWarpSize].arrived > 0) {
    violate("divergence: the thread ends while its warp waits in %s",
            warps_[thread->index.x / kWarpSize].collective);
  }
  thread->state = Thread::State::kDone;
  warps_[thread->index.x / kWarpSize].running--;
  running_--;
  if (running_ > 0 && at_barrier_ > 0) {
    violate("divergence: the thread ends while others wait at the barrier %s", barrier_place_);
  }
  yield();
  std::abort();  // a finished fiber is never resumed
}

// The first thread that can go on, in the order of the schedule; -1 when there is none.
int Block::next_ready(int after) {
  const int count = static_cast<int>(launch_.threads);
  const int step = schedule == TC_SCHEDULE_REVERSE ? count - 1 : 1;
  if (after < 0 && schedule == TC_SCHEDULE_REVERSE) after = 0;
  if (schedule == TC_SCHEDULE_RANDOM) after = static_cast<int>(random_bits() % count);
  for (int tried = 0, i = after; tried < count; ++tried) {
    i = (i + step + count) % count;
    if (threads_[i].state == Thread::State::kReady) return i;
  }
  return -1;
}

void Block::yield() {
  Thread* from = thread;
  if (running_ == 0) {
    switch_context(from->context, main_);
  }
  const int next = next_ready(static_cast<int>(from->index.x));
  if (next < 0) report_deadlock();
  thread = &threads_[next];
  if (thread != from) switch_context(from->context, thread->context);
}

void Block::report_deadlock() {
  for (const Warp& warp : warps_) {
    if (warp.arrived > 0) {
      violate("deadlock: %d of %d lanes wait in %s", warp.arrived, warp.running, warp.collective);
    }
  }
  violate("deadlock: %d of %d threads wait at the barrier %s", at_barrier_, running_,
          barrier_place_);
}

void Block::barrier(const char* place) {
  if (at_barrier_ == 0) {
    barrier_place_ = place;
  } else if (std::strcmp(barrier_place_, place) != 0) {
    violate("divergence: a barrier at %s while others wait at %s", place, barrier_place_);
  }
  if (running_ != static_cast<int>(launch_.threads)) {
    violate("divergence: a barrier at %s after a thread has ended", place);
  }
  if (++at_barrier_ < running_) {
    thread->state = Thread::State::kAtBarrier;
    yield();
    return;
  }
  at_barrier_ = 0;
  epoch_++;
  for (Thread& other : threads_) {
    if (other.state == Thread::State::kAtBarrier) other.state = Thread::State::kReady;
  }
}

void Block::collective(const char* name, void* argument, void (*complete)(void** arguments)) {
  const unsigned first = thread->index.x / kWarpSize * kWarpSize;
  Warp& warp = warps_[first / kWarpSize];
  if (warp.arrived == 0) {
    warp.collective = name;
  } else if (std::strcmp(warp.collective, name) != 0) {
    violate("divergence: %s while other lanes wait in %s", name, warp.collective);
  }
  if (warp.running != kWarpSize) violate("divergence: %s after a lane has ended", name);
  warp.arguments[thread->index.x - first] = argument;
  if (++warp.arrived < kWarpSize) {
    thread->state = Thread::State::kInCollective;
    yield();
    return;
  }
  complete(warp.arguments);
  warp.arrived = 0;
  for (unsigned i = first; i < first + kWarpSize; ++i) {
    threads_[i].state = Thread::State::kReady;
  }
}

Word* Block::words_at(const void* address, std::size_t bytes) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (byte < shared || byte + bytes > shared + launch_.shared_bytes) {
    violate("out of bounds: %zu bytes at offset %td of %zu bytes of shared memory", bytes,
            byte - shared, launch_.shared_bytes);
  }
  const std::size_t offset = byte - shared;
  if (offset % bytes != 0) violate("misaligned: %zu bytes at shared offset %zu", bytes, offset);
  return &words_[offset / kWordBytes];
}

void Block::mark_read(Word& word) {
  const int me = static_cast<int>(thread->index.x);
  const std::ptrdiff_t offset = (&word - words_.data()) * kWordBytes;
  if (word.copies_in_flight > 0) {
    violate("missing wait: shared offset %td is read while a cp.async to it is in flight", offset);
  }
  if (word.write_epoch == epoch_ && word.writer != me) {
    violate("data race: thread %d reads what thread %d wrote with no barrier between (offset %td)",
            me, word.writer, offset);
  }
  const bool first = word.read_epoch != epoch_;
  word.reader = first || word.reader == me ? me : Word::kSeveral;
  word.read_epoch = epoch_;
}

void Block::mark_written(Word& word) {
  const int me = static_cast<int>(thread->index.x);
  const std::ptrdiff_t offset = (&word - words_.data()) * kWordBytes;
  if (word.copies_in_flight > 0) {
    violate("missing wait: shared offset %td is written while a cp.async to it is in flight",
            offset);
  }
  const bool written = word.write_epoch == epoch_ && word.writer != me;
  const bool read = word.read_epoch == epoch_ && word.reader != me;
  if (written || read) {
    violate("data race: thread %d writes what another thread %s with no barrier between (offset "
            "%td)",
            me, written ? "wrote" : "read", offset);
  }
  word.writer = me;
  word.write_epoch = epoch_;
}

void Block::read_shared(const void* address, std::size_t bytes) {
  Word* words = words_at(address, bytes);
  for (std::size_t i = 0; i < bytes / kWordBytes; ++i) mark_read(words[i]);
}

void Block::write_shared(const void* address, std::size_t bytes) {
  Word* words = words_at(address, bytes);
  for (std::size_t i = 0; i < bytes / kWordBytes; ++i) mark_written(words[i]);
}

void Block::begin_copy(void* destination, const void* source, std::size_t bytes, bool fill) {
  Word* words = words_at(destination, bytes);
  for (std::size_t i = 0; i < bytes / kWordBytes; ++i) {
    mark_written(words[i]);
    words[i].copies_in_flight++;
  }
  if (!fill) {
    if (reinterpret_cast<std::uintptr_t>(source) % bytes != 0) {
      violate("misaligned: cp.async of %zu bytes from %p", bytes, source);
    }
    check_global(source, bytes, false);
  }
  std::memset(destination, kPoison, bytes);
  thread->copies.push_back({static_cast<unsigned char*>(destination), fill ? nullptr : source,
                            bytes, thread->open_group});
}

// Copies land as late as they may: when they are waited for.
void Block::wait_copies(int groups_left) {
  const int last = thread->open_group - groups_left;
  auto landed = [&](const PendingCopy& copy) {
    if (copy.group >= last) return false;
    Word* words = words_at(copy.destination, copy.bytes);
    for (std::size_t i = 0; i < copy.bytes / kWordBytes; ++i) {
      words[i].copies_in_flight--;
      mark_written(words[i]);
    }
    if (copy.source != nullptr) {
      std::memcpy(copy.destination, copy.source, copy.bytes);
    } else {
      std::memset(copy.destination, 0, copy.bytes);
    }
    return true;
  };
  auto& copies = thread->copies;
  copies.erase(std::remove_if(copies.begin(), copies.end(), landed), copies.end());
}

// Give up the launch: every fiber is abandoned where it stands. Kernels own no memory.
void Block::violate(const char* format, ...) {
  char what[384];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  std::snprintf(violation, sizeof violation, "%s [block %u, thread %u]", what, index.x,
                thread->index.x);
  violated_ = true;
  switch_context(thread->context, main_);
  std::abort();  // an abandoned fiber is never resumed
}

void check_global(const void* address, std::size_t bytes, bool write) {
  if (declared.empty()) return;
  const auto* byte = static_cast<const unsigned char*>(address);
  for (const Range& range : declared) {
    if (byte >= range.begin && byte + bytes <= range.end && (range.writable || !write)) return;
  }
  current_block().violate("out of bounds: %s of %zu bytes of global memory at %p",
                          write ? "write" : "read", bytes, address);
}

bool run_launch(const Launch& launch) {
  violation[0] = '\0';
  if (launch.threads == 0 || launch.threads % kWarpSize != 0 || launch.threads > 1024) {
    std::snprintf(violation, sizeof violation, "a block of %u threads", launch.threads);
    return false;
  }
  if (stacks.get(launch.threads) == nullptr) {
    std::snprintf(violation, sizeof violation, "no memory for %u stacks", launch.threads);
    return false;
  }
  std::vector<unsigned> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == TC_SCHEDULE_REVERSE) std::reverse(order.begin(), order.end());
  if (schedule == TC_SCHEDULE_RANDOM) std::shuffle(order.begin(), order.end(), random_bits);
  Block block(launch);
  return std::all_of(order.begin(), order.end(), [&](unsigned i) { return block.run(i); });
}

}  // namespace emulator

extern "C" {

void tc_emulator_set_schedule(tc_schedule schedule, uint64_t seed) {
  emulator::schedule = schedule;
  emulator::random_bits.seed(seed);
}

const char* tc_emulator_violation(void) { return emulator::violation; }

void tc_emulator_declare_memory(const void* begin, size_t bytes, int writable) {
  const auto* first = static_cast<const unsigned char*>(begin);
  emulator::declared.push_back({first, first + bytes, writable != 0});
}

void tc_emulator_forget_memory(void) { emulator::declared.clear(); }
}
