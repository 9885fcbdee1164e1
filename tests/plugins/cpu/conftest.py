# SPDX-License-Identifier: Apache-2.0
from tests.plugins.cpu.library import emulated_amx, kernels, library, native_build

__all__ = ["emulated_amx", "kernels", "library", "native_build"]
