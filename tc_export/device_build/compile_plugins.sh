#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Compiles this bundle's plugin library on its device, with the device's own CUDA compiler and
# TensorRT headers. `finish.sh` and `tc-export finish` run it, in the bundle's folder:
#
#   sh finish/compile_plugins.sh LIBRARY
#
# One call of nvcc, which takes g++ for what is not CUDA: the device need not have CMake. The flags
# are those of plugins/source/kernels/CMakeLists.txt and plugins/source/tensorrt/CMakeLists.txt.
#
# CUDA_HOME and TENSORRT_ROOT name folders that are not where the system has them. Exit code 4: this
# machine cannot do it, and the last line says what to install.
#
# What is used here and set nowhere comes from finish/machine.settings.
# shellcheck disable=SC2154

set -u
library=$1
# shellcheck source=/dev/null
. finish/machine.settings

fail() {
  printf '%s\n' "$@" >&2
  exit 4
}

cuda_package=cuda-toolkit-$(printf '%s' "$cuda" | tr . -)
install="install it: sudo apt-get install g++ $cuda_package libnvinfer-dev"
[ "$architecture" != aarch64 ] ||
  install="install it: sudo apt-get install g++ nvidia-jetpack-dev (or $cuda_package and libnvinfer-dev)"

nvcc=
for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" "/usr/local/cuda-$cuda/bin/nvcc"; do
  nvcc=$(command -v "$candidate") && break
done
[ -n "$nvcc" ] ||
  fail "nvcc is not on the PATH, nor in ${CUDA_HOME:-/usr/local/cuda}/bin" "$install"
command -v g++ > /dev/null || fail "g++ is not on the PATH" "$install"

sources=$plugin_sources
set -- -w -std=c++17 -O3 -DNDEBUG "-gencode=arch=compute_80,code=sm_$sm" -cudart static \
  -Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden \
  "-I$sources/include" "-I$sources/generated" "-I$sources/kernels/ptx" "-I$sources/kernels"
[ -z "${TENSORRT_ROOT:-}" ] || set -- "$@" "-I$TENSORRT_ROOT/include" "-I$TENSORRT_ROOT"

printf '#include <NvInferRuntime.h>\n' > "$library.cpp"
"$nvcc" -E "$@" "$library.cpp" > /dev/null 2>&1
found=$?
rm -f "$library.cpp"
[ "$found" -eq 0 ] || fail "the compiler does not find TensorRT's NvInferRuntime.h" "$install"

exec "$nvcc" -shared "$@" -Xlinker=--no-undefined,--version-script=finish/exports.map -o "$library" \
  "$sources"/kernels/*.cu "$sources"/tensorrt/*.cpp "$sources/status.cpp"
