# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: graph to engine, and engines that run.

`flavours` says what the two products are, `bindings` imports one of them, `cuda` is the GPU. An
engine is made by `build`, in a process whose parts are in `builder`, and judged by what
`layer_listing` reads in its log. `run` puts an engine behind the interface of all backends, and
`loading` opens those of a bundle.
"""
