# SPDX-License-Identifier: Apache-2.0
#
# Cross-compiling for NVIDIA Jetson from an x86-64 Linux host: Debian's cross compiler
# (g++-aarch64-linux-gnu), this host's nvcc, and CUDA's headers and runtime for aarch64.

set(TC_CUDA_AARCH64 "" CACHE PATH "Folder with CUDA's include/ and lib/ for aarch64")
if(NOT EXISTS "${TC_CUDA_AARCH64}/lib/libcudart_static.a")
  message(FATAL_ERROR "TC_CUDA_AARCH64 is '${TC_CUDA_AARCH64}', which has no "
                      "lib/libcudart_static.a. Fetch it with "
                      "'python -m tc_export.native.fetch cuda-aarch64', and pass the folder "
                      "that this prints.")
endif()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)

# Programs for aarch64, such as the tests, run in an emulator.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)

# nvcc looks for another processor's headers and libraries in targets/ of its own toolkit, and so
# does CMake. The host's toolkit need not have them, nor be ours to write to: a folder of links
# puts the two together.
find_program(tc_nvcc nvcc HINTS /usr/local/cuda/bin)
if(tc_nvcc AND NOT TC_CROSS_TOOLKIT)
  execute_process(COMMAND ${tc_nvcc} --dryrun --compile none.cu
                  ERROR_VARIABLE nvcc_settings OUTPUT_QUIET)
  string(REGEX MATCH "TOP=([^\r\n]+)" _ "${nvcc_settings}")
  get_filename_component(host_toolkit "${CMAKE_MATCH_1}" ABSOLUTE)
  set(TC_CROSS_TOOLKIT "${CMAKE_BINARY_DIR}/cuda-toolkit" CACHE INTERNAL "Links to CUDA's parts")
  # bin/ is a folder of its own: nvcc finds the rest through "bin/..", which leaves a linked folder.
  file(MAKE_DIRECTORY "${TC_CROSS_TOOLKIT}/bin" "${TC_CROSS_TOOLKIT}/targets")
  file(GLOB programs "${host_toolkit}/bin/*")
  foreach(program ${programs})
    get_filename_component(name "${program}" NAME)
    file(CREATE_LINK "${program}" "${TC_CROSS_TOOLKIT}/bin/${name}" SYMBOLIC)
  endforeach()
  file(CREATE_LINK "${host_toolkit}/nvvm" "${TC_CROSS_TOOLKIT}/nvvm" SYMBOLIC)
  file(CREATE_LINK "${TC_CUDA_AARCH64}" "${TC_CROSS_TOOLKIT}/targets/aarch64-linux" SYMBOLIC)
endif()
if(TC_CROSS_TOOLKIT)
  set(CMAKE_CUDA_COMPILER "${TC_CROSS_TOOLKIT}/bin/nvcc")
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES TC_CUDA_AARCH64 TC_CROSS_TOOLKIT)
