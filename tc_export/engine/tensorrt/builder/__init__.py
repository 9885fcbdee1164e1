# SPDX-License-Identifier: Apache-2.0
"""The process that builds one engine, and how it is started and talked to.

`worker` is what runs there, over `network`, TensorRT's builder behind one class, and `progress`.
`messages` and `process` are for both sides: what they say to each other, and how one ends the
other. Nothing heavy is imported here: the worker's memory is the builder's.
"""
