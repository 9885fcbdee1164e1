# SPDX-License-Identifier: Apache-2.0
"""PyTorch to ONNX: tracing, custom ops, weights attached from where they lie."""
