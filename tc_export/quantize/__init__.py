# SPDX-License-Identifier: Apache-2.0
"""Makes a checkpoint whose matrices have four or eight bits, as a recipe says."""
