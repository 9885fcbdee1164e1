# SPDX-License-Identifier: Apache-2.0
"""Engines that only their device can build: what the host prepares, and what the device does.

`write` puts a spec (`spec`), golden data and a script into a bundle. On the device, `finish.sh`
builds and judges the engines with TensorRT's trtexec alone; `finish` does it from Python, and
records them in the manifest.
"""
