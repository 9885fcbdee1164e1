# SPDX-License-Identifier: Apache-2.0
"""Trains the small demonstration model on the generated video-QA suite, from scratch.

It trains the reference model itself, through the custom ops, and writes what any other LLaVA
checkpoint is: a folder in Hugging Face's format. No stage of an export imports this package.
"""
