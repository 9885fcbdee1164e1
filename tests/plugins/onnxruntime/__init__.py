# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's binding, on machines without a GPU."""
