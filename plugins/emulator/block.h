// SPDX-License-Identifier: Apache-2.0
//
// One thread block on the CPU: a fiber for each of its threads, its shared memory, and the rules
// that a kernel must keep. A fiber runs until it has to wait (barrier, warp collective); then the
// schedule chooses the next.
//
// What is watched, and how:
// - Shared memory, in words of 4 bytes. A barrier begins a new epoch. Two threads may not touch
//   one word in one epoch if either of them writes: that is a data race.
// - A word that is the target of a `cp.async` may not be touched until the copy was waited for.
// - A barrier must be reached by all threads at one place in the source; a warp collective by all
//   32 lanes. If no thread can go on, that is a deadlock.
// - Global memory, when the caller declared which ranges exist.

#ifndef TC_EMULATOR_BLOCK_H
#define TC_EMULATOR_BLOCK_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "context.h"

namespace emulator {

constexpr int kWarpSize = 32;
constexpr int kWordBytes = 4;

struct Index {
  unsigned x = 0;
};

// A `cp.async` that was issued and not yet waited for. A null source fills with zeros.
struct PendingCopy {
  unsigned char* destination;
  const void* source;
  std::size_t bytes;
  int group;
};

struct Thread {
  enum class State : std::uint8_t { kReady, kAtBarrier, kInCollective, kDone };

  Context context;
  Index index;
  State state = State::kReady;
  std::vector<PendingCopy> copies;
  int open_group = 0;
};

struct Warp {
  void* arguments[kWarpSize];
  int arrived = 0;
  int running = kWarpSize;
  const char* collective = "";
};

// Who touched a word of shared memory last.
struct Word {
  static constexpr int kNobody = -1;
  static constexpr int kSeveral = -2;

  int writer = kNobody;
  int write_epoch = -1;
  int reader = kNobody;
  int read_epoch = -1;
  int copies_in_flight = 0;
};

// The whole launch: the same for all of its blocks.
struct Launch {
  unsigned blocks;
  unsigned threads;
  std::size_t shared_bytes;
  void (*kernel)(const void* closure);
  const void* closure;
};

class Block {
 public:
  explicit Block(const Launch& launch);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Run block `index` to its end; false when the kernel broke a rule.
  bool run(unsigned index);

  // Called from the kernel, on a fiber.
  void barrier(const char* place);
  void collective(const char* name, void* argument, void (*complete)(void** arguments));
  void read_shared(const void* address, std::size_t bytes);
  void write_shared(const void* address, std::size_t bytes);
  void begin_copy(void* destination, const void* source, std::size_t bytes, bool fill);
  void wait_copies(int groups_left);
  // Does not return. Not declared so: before such a call AddressSanitizer cleans up the stack of
  // the OS thread, which is not the one that a fiber runs on.
  void violate(const char* format, ...) __attribute__((format(printf, 2, 3)));

  Index index;
  Index size;
  Index grid;
  Thread* thread = nullptr;
  unsigned char* shared = nullptr;

 private:
  static void fiber_main();
  void reset(unsigned block);
  void finish_thread();
  void yield();
  int next_ready(int after);
  void report_deadlock();
  Word* words_at(const void* address, std::size_t bytes);
  void mark_read(Word& word);
  void mark_written(Word& word);

  Launch launch_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Word> words_;
  Context main_;
  int running_ = 0;
  int at_barrier_ = 0;
  int epoch_ = 0;
  const char* barrier_place_ = "";
  bool violated_ = false;
};

// The block whose kernel runs on this OS thread; null outside of a launch.
Block& current_block();

void check_global(const void* address, std::size_t bytes, bool write);

// Run all blocks of a launch, one after another; false when the kernel broke a rule.
bool run_launch(const Launch& launch);

}  // namespace emulator

#endif  // TC_EMULATOR_BLOCK_H
