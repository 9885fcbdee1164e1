# SPDX-License-Identifier: Apache-2.0
"""What an engine is made of, read from the lines in which its builder lists the layers.

An engine cannot be opened without its GPU; its builder says while building, at the verbosity
DETAILED, what each layer became. A line is (TensorRT-RTX 1.7; shortened):

    Name: node_linear_myl0_4, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,96],
    Datatype: Half, Format: … }], Constants: [ { Name: w, Dimensions: [96,288], … }], Outputs: [ …

Older versions list constants among the inputs, write `Format/Datatype: Half` or `Format/Datatype:
Row major linear FP16 format`, and may have `Weights: {"Type": "Half", "Count": 9}` instead.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from tc_export.dtypes import DType

FEW_BITS = (DType.INT4, DType.INT8, DType.FP8, DType.NVFP4)
"""Formats of weights that are multiplied as they are, or widened where they are multiplied."""

NARROWEST_FIRST = sorted((dtype for dtype in DType if dtype.is_float), key=lambda x: x.bits)
_WORD = re.compile(r"\w+")
_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\w+)(?P<rest>.*)")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d,]*)\]"
    r".*?Datatype: (?P<type>[^,}]*)"
)
_SECTION = re.compile(r", (Inputs|Constants|Outputs): \[")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)", "Count": [1-9]')

_CONSTANT = re.compile(r"_d?const")  # in the name of an input: how older versions list constants
_GENERATED = "kgen"  # kernels made for what stands between products, and for attention
_GENERATED_PRODUCT = re.compile(r"_gemm|_mha")  # in the name of such a kernel
_PRODUCT = re.compile(r"gemm|conv|correlation|matmul|matrix_?multiply|mha|attention", re.IGNORECASE)
_PLUGIN = re.compile(r"plugin|custom_layer", re.IGNORECASE)


@dataclass(frozen=True)
class LoggedTensor:
    """A tensor of a layer; an axis of -1 is dynamic.

    `dtype` is a name of `DType`; where that has none, TensorRT's own in lower case.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_matrix(self) -> bool:
        """True where at least two axes are longer than one."""
        return sum(length > 1 for length in self.shape) > 1


@dataclass(frozen=True, kw_only=True)
class LoggedLayer:
    """A layer of an engine, as its builder lists it."""

    name: str
    layer_type: str
    inputs: tuple[LoggedTensor, ...] = ()
    constants: tuple[LoggedTensor, ...] = ()
    outputs: tuple[LoggedTensor, ...] = ()
    weights_dtype: str | None = None

    @property
    def product_dtype(self) -> str | None:
        """The type that the layer multiplies matrices in; None where it multiplies none.

        That is the type of the matrices that it holds; where it holds none, as attention, the
        narrowest type that it reads (a sum or a bias of a wider type may be fused to it).
        """
        if _PLUGIN.search(self.layer_type):
            return narrowest(tensor.dtype for tensor in self.outputs)
        if self.weights_dtype is not None:
            return self.weights_dtype
        generated = self.layer_type == _GENERATED
        held = [tensor.dtype for tensor in self.constants if tensor.is_matrix]
        if held and not generated:
            # Whole numbers are multiplied with whole numbers, or in what they are widened to.
            inputs = {tensor.dtype for tensor in self.inputs}
            return narrowest(held) or narrowest(inputs) or next(iter(inputs & {*held}), None)
        kernel, of_product = (
            (self.name, _GENERATED_PRODUCT) if generated else (self.layer_type, _PRODUCT)
        )
        if of_product.search(kernel):
            return narrowest(tensor.dtype for tensor in self.inputs)
        return None


@dataclass(frozen=True, kw_only=True)
class Realised:
    """An engine's layers, by what they became."""

    layers: int
    by_type: dict[str, dict[str, int]]
    """Layer type -> type of its first output -> how many."""
    products: dict[str, list[str]]
    """Type -> names of the layers that multiply matrices in it."""
    few_bits: dict[str, int]
    """Format of few bits -> how many weights the products read in it. Those that a kernel of its
    own widens before do not count: they are written and read in full."""

    @property
    def precision(self) -> str:
        """The type of all matrix products; several are joined by `+`, the commonest first."""
        commonest = sorted(self.products, key=lambda dtype: -len(self.products[dtype]))
        return "+".join(commonest)


def read_layers(lines: Iterable[str]) -> list[LoggedLayer]:
    """Read the lines that list layers; others are passed over."""
    return [_layer(found) for line in lines if (found := _LAYER.match(line.strip()))]


def summarise(layers: Sequence[LoggedLayer]) -> Realised:
    """Count layers by type, and find the precision that was realised."""
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    products: defaultdict[str, list[str]] = defaultdict(list)
    few_bits: Counter[str] = Counter()
    for layer in layers:
        dtype = layer.outputs[0].dtype if layer.outputs else "none"
        by_type[layer.layer_type][dtype] += 1
        if layer.product_dtype is not None:
            products[layer.product_dtype].append(layer.name)
            for tensor in layer.constants:
                if tensor.dtype in FEW_BITS and tensor.is_matrix:
                    few_bits[tensor.dtype] += prod(tensor.shape)
    return Realised(
        layers=len(layers),
        by_type={name: dict(sorted(counts.items())) for name, counts in sorted(by_type.items())},
        products=dict(products),
        few_bits=dict(few_bits),
    )


def narrowest(dtypes: Iterable[str]) -> str | None:
    """The narrowest floating-point type among `dtypes`, or None."""
    found = set(dtypes)
    return next((dtype for dtype in NARROWEST_FIRST if dtype in found), None)


def _layer(found: re.Match[str]) -> LoggedLayer:
    sections = {"Inputs": "", "Constants": "", "Outputs": ""}
    pieces = _SECTION.split(found["rest"])
    sections |= dict(zip(pieces[1::2], pieces[2::2], strict=True))
    weights = _WEIGHTS.search(found["rest"])
    inputs = _tensors(sections["Inputs"])
    listed = tuple(tensor for tensor in inputs if _CONSTANT.search(tensor.name))
    return LoggedLayer(
        name=found["name"],
        layer_type=found["type"],
        inputs=tuple(tensor for tensor in inputs if tensor not in listed),
        constants=listed + _tensors(sections["Constants"]),
        outputs=_tensors(sections["Outputs"]),
        weights_dtype=_dtype(weights[1]) if weights else None,
    )


def _tensors(section: str) -> tuple[LoggedTensor, ...]:
    return tuple(
        LoggedTensor(
            tensor["name"],
            tuple(int(length) for length in tensor["shape"].split(",") if length),
            _dtype(tensor["type"]),
        )
        for tensor in _TENSOR.finditer(section)
    )


def _dtype(text: str) -> str:
    """Our name of a type that TensorRT writes alone or inside the name of a format."""
    known = (DType.from_alias(word) for word in _WORD.findall(text))
    return next((dtype for dtype in known if dtype is not None), text.strip().lower())
