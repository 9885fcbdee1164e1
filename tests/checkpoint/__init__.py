# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as transformers saves them, as older versions saved them, and damaged ones."""
