# SPDX-License-Identifier: Apache-2.0
"""Is what a bundle carries beside its graphs what transformers makes of the checkpoint?"""
