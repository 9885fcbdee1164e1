# SPDX-License-Identifier: Apache-2.0
"""The emulator that the CUDA kernels' tests run on."""
