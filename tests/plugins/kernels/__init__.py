# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, on the emulator of `plugins/emulator` and as compiled code, without a GPU."""
