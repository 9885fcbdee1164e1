# SPDX-License-Identifier: Apache-2.0
"""Rewritings of a graph, one a file; each says what it rewrites and whether it changed anything."""
