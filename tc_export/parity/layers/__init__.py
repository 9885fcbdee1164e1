# SPDX-License-Identifier: Apache-2.0
"""In which layer, at which frame and in which node a decoder's graph parts from PyTorch."""
