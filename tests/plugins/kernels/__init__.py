# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugins, on machines without a GPU."""
