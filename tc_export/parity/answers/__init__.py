# SPDX-License-Identifier: Apache-2.0
"""Does the engine answer as PyTorch does?"""
