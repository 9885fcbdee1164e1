# SPDX-License-Identifier: Apache-2.0
"""Does the engine compute what the PyTorch model computes, and answer as it does?"""
