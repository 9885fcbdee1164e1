# SPDX-License-Identifier: Apache-2.0
"""Engines that only their device can build: what the host prepares, and what the device does.

`write` puts a spec (`spec`) and a script into a bundle. On the device, `finish.sh` builds the
engines with TensorRT's trtexec alone and judges them by the bundle's golden data; `finish` does it
from Python, and records them in the manifest.
"""
