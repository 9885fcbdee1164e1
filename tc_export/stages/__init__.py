# SPDX-License-Identifier: Apache-2.0
"""The steps of a build, one a file: what each depends on, what it writes, and how."""
