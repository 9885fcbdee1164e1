# SPDX-License-Identifier: Apache-2.0
"""From a video and a question to an answer."""
