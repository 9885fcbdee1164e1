/* SPDX-License-Identifier: Apache-2.0
 *
 * The C interface of the native ops: what every binding (TensorRT, ONNX Runtime, PyTorch)
 * calls. Raw pointers, a stream or a thread pool, an error code; no framework. The meaning of each
 * argument is the contract in tc_export/contracts/ops.py; a test holds the structs to it.
 *
 * All tensors are contiguous in the order that their comment gives. B batch, H query heads,
 * K key/value heads (H a multiple of K), S tokens of this call, C cache rows, D head size,
 * R half of the rotated channels.
 */
#ifndef TC_KERNELS_H
#define TC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define TC_API __declspec(dllexport)
#else
#define TC_API __attribute__((visibility("default")))
#endif

typedef enum { TC_FLOAT32 = 0, TC_FLOAT16 = 1, TC_BFLOAT16 = 2 } tc_dtype;

typedef enum {
  TC_OK = 0,
  TC_INVALID_ARGUMENT = 1, /* a null pointer, or a size that is zero, negative or does not divide */
  TC_UNSUPPORTED = 2,      /* a data type or head size that this back end does not have */
  TC_CACHE_OVERFLOW = 3,   /* a slot at or past C, or below -1 */
  TC_OUT_OF_MEMORY = 4,
  TC_LAUNCH_FAILED = 5,
  TC_KV_END_OUT_OF_RANGE = 6 /* CPU, debug builds only: kv_end below 0 or past C */
} tc_status;

/* A sentence in English for a status; never null. */
TC_API const char* tc_status_message(tc_status status);

/* y = attention of q over rows [0, kv_end) of the cache, after k and v are written to rows `slots`.
 * Slot -1 is padding: its k and v may be left unwritten. kv_end <= 0 gives y = 0; kv_end > C is C;
 * a debug build for the CPU refuses both kv_end < 0 and kv_end > C, which are bugs of the caller.
 * present_key may equal past_key (and present_value past_value): then nothing is copied.
 * scale is positive and finite. CUDA: the 16-bit types only, 16-byte aligned, and a slot outside
 * [0, C) is left unwritten, since seeing it would mean reading device memory back. */
typedef struct {
  tc_dtype dtype; /* of every tensor but kv_end and slots */
  int64_t batch, q_heads, kv_heads, tokens, cache_rows, head_dim;
  float scale;
  const void* q;          /* [B, H, S, D] */
  const void* k;          /* [B, K, S, D] */
  const void* v;          /* [B, K, S, D] */
  const int32_t* kv_end;  /* [B, S] */
  const int64_t* slots;   /* [B, S] */
  const void* past_key;   /* [B, K, C, D] */
  const void* past_value; /* [B, K, C, D] */
  void* y;                /* [B, H, S, D] */
  void* present_key;      /* [B, K, C, D] */
  void* present_value;    /* [B, K, C, D] */
} tc_attention_args;

/* The same over a cache in int8: a number of it is its code times the scale of its row. The scale of a
 * new row is its largest absolute number over 127, in float32, and its codes are its numbers over
 * that, rounded to the nearest, ties to even; a row of zeros has the scale 0. Each
 * part of the cache may be updated in place, as above. */
typedef struct {
  tc_dtype dtype; /* of q, k, v and y */
  int64_t batch, q_heads, kv_heads, tokens, cache_rows, head_dim;
  float scale;
  const void* q;                 /* [B, H, S, D] */
  const void* k;                 /* [B, K, S, D] */
  const void* v;                 /* [B, K, S, D] */
  const int32_t* kv_end;         /* [B, S] */
  const int64_t* slots;          /* [B, S] */
  const int8_t* past_key;        /* [B, K, C, D] */
  const int8_t* past_value;      /* [B, K, C, D] */
  const float* past_key_scale;   /* [B, K, C] */
  const float* past_value_scale; /* [B, K, C] */
  void* y;                       /* [B, H, S, D] */
  int8_t* present_key;           /* [B, K, C, D] */
  int8_t* present_value;         /* [B, K, C, D] */
  float* present_key_scale;      /* [B, K, C] */
  float* present_value_scale;    /* [B, K, C] */
} tc_attention_int8_args;

/* y = x with channel pairs (k, k + R) rotated by (n + gamma T) inv_freq[k]; angles in float32.
 * y may equal x. */
typedef struct {
  tc_dtype dtype; /* of x and y */
  int64_t batch, heads, tokens, head_dim, rotary_half;
  float gamma, attention_factor;
  const void* x;               /* [B, H, S, D] */
  const int64_t* position_ids; /* [B, S] */
  const int64_t* temporal_ids; /* [B, S] */
  const float* inv_freq;       /* [R], 2 R <= D */
  void* y;                     /* [B, H, S, D] */
} tc_dual_rope_args;

/* CPU. Work is handed to the caller's threads: parallel_for(context, n, task, data) must call
 * task(data, i) once for every i in [0, n) and return when all are done. */
typedef void (*tc_parallel_for)(void* context, size_t n, void (*task)(void* data, size_t i),
                                void* data);

TC_API tc_status tc_cpu_block_causal_attention(const tc_attention_args* args,
                                               tc_parallel_for parallel_for, void* context);
TC_API tc_status tc_cpu_block_causal_attention_int8(const tc_attention_int8_args* args,
                                                    tc_parallel_for parallel_for, void* context);
TC_API tc_status tc_cpu_dual_rope(const tc_dual_rope_args* args, tc_parallel_for parallel_for,
                                  void* context);

/* CUDA. `stream` is a cudaStream_t; `workspace` is device memory of at least the size asked for. */
TC_API size_t tc_cuda_block_causal_attention_workspace(const tc_attention_args* args);
TC_API tc_status tc_cuda_block_causal_attention(const tc_attention_args* args, void* workspace,
                                                size_t workspace_bytes, void* stream);
TC_API size_t tc_cuda_block_causal_attention_int8_workspace(const tc_attention_int8_args* args);
TC_API tc_status tc_cuda_block_causal_attention_int8(const tc_attention_int8_args* args,
                                                     void* workspace, size_t workspace_bytes,
                                                     void* stream);
TC_API tc_status tc_cuda_dual_rope(const tc_dual_rope_args* args, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TC_KERNELS_H */
