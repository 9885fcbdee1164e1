# SPDX-License-Identifier: Apache-2.0
"""Faults that an exporter or an engine could have, planted in a copy of a bundle."""
