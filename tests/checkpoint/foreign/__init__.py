# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other libraries quantised: each number is kept, what cannot be is refused."""
