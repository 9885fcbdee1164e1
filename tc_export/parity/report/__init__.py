# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison for people: one HTML file, made from what `report.json` says."""
