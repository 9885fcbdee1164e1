# SPDX-License-Identifier: Apache-2.0
"""Graph to engine, where that is a step of its own: TensorRT and TensorRT-RTX."""
