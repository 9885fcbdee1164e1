# SPDX-License-Identifier: Apache-2.0
from tests.plugins.cpu.library import library, native_build
from tests.plugins.kernels.conftest import emulated_build
from tests.plugins.tensorrt.conftest import host_build

__all__ = ["emulated_build", "host_build", "library", "native_build"]
