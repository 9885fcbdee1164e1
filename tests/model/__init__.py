# SPDX-License-Identifier: Apache-2.0
"""The reference model, against readings of the method that share no code with it."""
