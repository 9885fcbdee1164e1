# SPDX-License-Identifier: Apache-2.0
"""Parts of `quantisation.py`: what is measured, what peers make, and the picture."""
