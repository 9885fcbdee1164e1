# SPDX-License-Identifier: Apache-2.0
"""What quantising cost."""
