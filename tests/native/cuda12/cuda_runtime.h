// SPDX-License-Identifier: Apache-2.0
//
// The part of CUDA's runtime that the kernels' host code calls. NVRTC has the types by itself.

#pragma once

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, unsigned long, cudaStream_t);
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int);
cudaError_t cudaMemcpyAsync(void*, const void*, unsigned long, cudaMemcpyKind, cudaStream_t);
