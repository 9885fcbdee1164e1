# SPDX-License-Identifier: Apache-2.0
"""Golden data: a call of each graph, and what the model gives for it.

`make` computes it with PyTorch; `files` is how a bundle holds it for runtimes of any kind, and
`polygraphy` how NVIDIA's Polygraphy takes it. A device reads the files, and needs no PyTorch.
"""
