# SPDX-License-Identifier: Apache-2.0
"""Does the engine compute what PyTorch computes, tensor by tensor?"""
