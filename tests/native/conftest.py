# SPDX-License-Identifier: Apache-2.0
from tests.plugins.cpu.library import library, native_build

__all__ = ["library", "native_build"]
