# SPDX-License-Identifier: Apache-2.0
"""The reference model in plain PyTorch, and the positions and masks that it is fed."""
