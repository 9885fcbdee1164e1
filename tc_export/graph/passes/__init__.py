# SPDX-License-Identifier: Apache-2.0
"""Rewritings of a graph, one a file, whose docstring numbers what it rewrites.

Each changes the graph in place and returns how many nodes it rewrote, by operator. Where it found
nothing to do that is empty, hence false, and the graph is as it was.
"""
