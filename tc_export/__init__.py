# SPDX-License-Identifier: Apache-2.0
"""Export TC-LLaVA video-language models to engines that are checked against PyTorch."""

__version__ = "0.1.0"
