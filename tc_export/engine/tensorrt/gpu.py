# SPDX-License-Identifier: Apache-2.0
"""The GPU of this machine, asked through the driver's own library."""

from __future__ import annotations

import ctypes

from tc_export.errors import EnvironmentLacks

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_NO_GPU_HINT = "build on a machine with the target's GPU"


def compute_capability_here() -> int:
    """The compute capability of the first GPU, as one number: 8.9 is 89.

    Raises:
        EnvironmentLacks: no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise EnvironmentLacks(
            f"TensorRT builds for the GPU that is here, and there is no NVIDIA driver: {error}",
            hint=_NO_GPU_HINT,
        ) from error
    device = ctypes.c_int()
    values = (ctypes.c_int(), ctypes.c_int())
    status = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute, value in zip((_MAJOR, _MINOR), values, strict=True):
        status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if status:
        raise EnvironmentLacks(
            "TensorRT builds for the GPU that is here, and the driver finds none "
            f"(CUDA error {status})",
            hint=_NO_GPU_HINT,
        )
    major, minor = (value.value for value in values)
    return 10 * major + minor
