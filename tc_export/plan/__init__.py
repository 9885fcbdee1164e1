# SPDX-License-Identifier: Apache-2.0
"""What a model will take on a device, before anything is built: memory, frames, time."""
