# SPDX-License-Identifier: Apache-2.0
"""The two TensorRT products: what each is called, and where its Python module comes from."""

from __future__ import annotations

from dataclasses import dataclass

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of the two products, and which versions of it we drive."""

    title: str
    # The first that is there is taken. Wheels are named after the bindings that they hold; a
    # Jetson's own package has the plain name.
    modules: tuple[str, ...]
    majors: tuple[int, ...]
    oldest: tuple[int, int]
    takes_target: bool  # it is told the compute capability, and so builds without a GPU
    needs_parser_link: bool  # its wheel lacks a name of its library that its ONNX parser opens
    install: str


FLAVOURS = {
    TENSORRT_RTX: Flavour(
        title="TensorRT-RTX",
        modules=("tensorrt_rtx_bindings", "tensorrt_rtx"),
        majors=(1,),
        oldest=(1, 0),
        takes_target=True,
        needs_parser_link=True,
        install="pip install 'tc-export[rtx]'",
    ),
    TENSORRT: Flavour(
        title="TensorRT",
        modules=("tensorrt_bindings", "tensorrt"),
        majors=(10, 11),
        oldest=(10, 3),
        takes_target=False,
        needs_parser_link=False,
        install="on a Jetson: sudo apt-get install nvidia-jetpack; elsewhere: pip install tensorrt",
    ),
}
