# SPDX-License-Identifier: Apache-2.0
"""The kernels' C interface, as Python and the contracts know it."""
