# SPDX-License-Identifier: Apache-2.0
"""Backends that run an exported graph, behind one small interface."""
