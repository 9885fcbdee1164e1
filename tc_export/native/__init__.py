# SPDX-License-Identifier: Apache-2.0
"""Our compiled code: building, fetching and finding it."""
