# SPDX-License-Identifier: Apache-2.0
"""What did quantising cost? The model before and after, by answers and by text."""
