# SPDX-License-Identifier: Apache-2.0
"""Tests: one folder for each folder of `tc_export`."""
