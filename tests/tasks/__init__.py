# SPDX-License-Identifier: Apache-2.0
"""The generated video-QA suite."""
