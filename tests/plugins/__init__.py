# SPDX-License-Identifier: Apache-2.0
"""The native code: one folder for each folder of `plugins`."""
