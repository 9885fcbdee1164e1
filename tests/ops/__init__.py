# SPDX-License-Identifier: Apache-2.0
"""The contracts of the custom ops and their PyTorch references."""
