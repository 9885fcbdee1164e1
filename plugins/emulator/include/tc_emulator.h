/* SPDX-License-Identifier: Apache-2.0
 *
 * The emulator's own interface, beside the tc_cuda_* launchers that the emulated build exports.
 *
 * The emulated launchers take host memory, ignore the stream, and return when the work is done.
 * They run on the caller's thread; all state here belongs to the calling thread.
 */
#ifndef TC_EMULATOR_H
#define TC_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

#include "tc_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In which order blocks, and the threads of a block, get their turn. A correct kernel gives the
 * same bits under every schedule. */
typedef enum {
  TC_SCHEDULE_FORWARD = 0,
  TC_SCHEDULE_REVERSE = 1,
  TC_SCHEDULE_RANDOM = 2
} tc_schedule;

/* For all later launches. `seed` matters to TC_SCHEDULE_RANDOM only. */
TC_API void tc_emulator_set_schedule(tc_schedule schedule, uint64_t seed);

/* What a kernel did wrong in the latest launch, in English ("data race: ..."); empty when nothing.
 * A launch that does wrong stops there and returns TC_LAUNCH_FAILED. */
TC_API const char* tc_emulator_violation(void);

/* Declare memory that kernels may touch. While at least one range is declared, an access to
 * global memory outside of all ranges is a violation. A writable range may be read, too. */
TC_API void tc_emulator_declare_memory(const void* begin, size_t bytes, int writable);
TC_API void tc_emulator_forget_memory(void);

#ifdef __cplusplus
}
#endif

#endif /* TC_EMULATOR_H */
