# SPDX-License-Identifier: Apache-2.0
"""Reading Hugging Face checkpoints: memory-mapped safetensors, and one table of names a family."""
