# SPDX-License-Identifier: Apache-2.0
"""What parts of the project agree on, as data: custom ops, and both graphs' inputs and outputs."""
