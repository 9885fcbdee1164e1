# SPDX-License-Identifier: Apache-2.0
"""Watching while a video is still coming, and answering at any moment."""
