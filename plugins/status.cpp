// SPDX-License-Identifier: Apache-2.0
//
// The sentence for each status of the C interface.

#include "tc_kernels.h"

extern "C" const char* tc_status_message(tc_status status) {
  switch (status) {
    case TC_OK:
      return "done";
    case TC_INVALID_ARGUMENT:
      return "invalid argument: a null pointer, or a size that is zero, negative or does not divide";
    case TC_UNSUPPORTED:
      return "this back end does not have the data type or the head size";
    case TC_CACHE_OVERFLOW:
      return "cache overflow: a slot is at or past the cache's capacity, or below -1";
    case TC_OUT_OF_MEMORY:
      return "out of memory";
    case TC_LAUNCH_FAILED:
      return "the kernel could not be launched";
    case TC_KV_END_OUT_OF_RANGE:
      return "kv_end is below zero or past the cache's capacity";
  }
  return "unknown status";
}
