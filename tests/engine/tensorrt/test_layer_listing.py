# SPDX-License-Identifier: Apache-2.0
"""Reading the builder's list of layers: lines of TensorRT-RTX 1.7 and of TensorRT 10, shortened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.engine.tensorrt.layer_listing import (
    NARROWEST_FIRST,
    LoggedTensor,
    narrowest,
    read_layers,
    summarise,
)
from tc_export.targets import Precision


def tensor(name: str, shape: str, dtype: str) -> str:
    """A tensor as TensorRT-RTX writes it."""
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [{shape}], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


# TensorRT-RTX lists constants apart; the factors alpha and beta of a product are always Float.
RTX_GEMM = (
    "Name: node_linear_2+node_linear_1_myl2_2, LayerType: gemm, "
    f"Inputs: [ {tensor('x', '1,-1,128', 'Half')}], "
    f"Constants: [ {tensor('w', '1,128,512', 'Half')}, {tensor('alpha', '1', 'Float')}], "
    f"Outputs: [ {tensor('y', '1,-1,512', 'Half')}], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_linear_2]"
)
# A product in float32, of an input that is cast as it is read.
RTX_CAST_GEMM = RTX_GEMM.replace(
    tensor("w", "1,128,512", "Half"), tensor("w", "1,128,512", "Float")
)
RTX_ATTENTION = (
    "Name: _gemm_mha_v2_myl0_8, LayerType: kgen, "
    f"Inputs: [ {tensor('q', '-1,17,24', 'BFloat16')}], Constants: [], "
    f"Outputs: [ {tensor('y', '-1,17,24', 'BFloat16')}]"
)
RTX_NORM = (
    "Name: __myl_CastMulMeanAddSqrt_myl0_3, LayerType: kgen, "
    f"Inputs: [ {tensor('x', '-1,96', 'Half')}], "
    f"Constants: [ {tensor('table', '17,96', 'Float')}], "
    f"Outputs: [ {tensor('y', '-1,96', 'Half')}]"
)
RTX_SUM = (
    "Name: __myl_Add_myl0_9, LayerType: runtime_fusion, "
    f"Inputs: [ {tensor('x', '-1,96', 'Half')}], "
    f"Constants: [ {tensor('bias', '1,96', 'Float')}], "
    f"Outputs: [ {tensor('y', '-1,96', 'Float')}]"
)
RTX_PLUGIN = (
    "Name: node_dual_rope_myl2_7, LayerType: custom_layer, "
    f"Inputs: [ {tensor('q', '1,4,-1,64', 'Half')}, {tensor('position_ids', '1,-1', 'Int64')}], "
    f"Constants: [ {tensor('inv_freq', '32', 'Float')}], "
    f"Outputs: [ {tensor('rotated', '1,4,-1,64', 'Half')}]"
)
RTX_SHAPES = (
    "Name: __mye1_0_myl0_0, LayerType: shape_call, "
    "Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
)
# TensorRT 10 lists constants among the inputs, or names the type of the weights alone.
OLD_GEMM = (
    "Name: /head/Gemm_myl9_4, LayerType: gemm, "
    "Inputs: [ { Name: output'.1_4, Dimensions: [1,4096], Format/Datatype: Half }, "
    "{ Name: __mye595_dconst, Dimensions: [4096,1000], Format/Datatype: Half }, "
    "{ Name: __mye574/head/Gemm_alpha, Dimensions: [1], Format/Datatype: Float }], "
    "Outputs: [ { Name: y, Dimensions: [1,1000], Format/Datatype: Half }], TacticName: cublas"
)
OLD_CAST_GEMM = OLD_GEMM.replace(
    "[4096,1000], Format/Datatype: Half", "[4096,1000], Format/Datatype: Float"
)
OLD_CONVOLUTION = (
    "Name: /f.0/Conv + /f.1/Relu, LayerType: CaskConvolution, "
    "Inputs: [ { Name: x, Location: Device, Dimensions: [1,3,224,224], "
    "Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], "
    "Outputs: [ { Name: y, Location: Device, Dimensions: [1,64,55,55], "
    "Format/Datatype: Channel major FP32 format }], "
    'ParameterType: Convolution, Weights: {"Type": "Float", "Count": 23232}, TacticName: sm80'
)
OLD_REFORMAT = (
    "Name: Reformatting CopyNode for Input Tensor 0 to /f.0/Conv, LayerType: Reformat, "
    "Inputs: [ { Name: x, Location: Device, Dimensions: [1,3,9,9], "
    "Format/Datatype: Row major linear FP32 }], "
    "Outputs: [ { Name: y, Location: Device, Dimensions: [1,3,9,9], Format/Datatype: Half }]"
)


@pytest.mark.parametrize(
    ("line", "layer_type", "product"),
    [
        (RTX_GEMM, "gemm", "float16"),
        (RTX_GEMM.replace("Half", "Float"), "gemm", "float32"),
        (RTX_CAST_GEMM, "gemm", "float32"),
        (RTX_ATTENTION, "kgen", "bfloat16"),
        (RTX_NORM, "kgen", None),
        (RTX_SUM, "runtime_fusion", None),
        (RTX_PLUGIN, "custom_layer", "float16"),
        (RTX_SHAPES, "shape_call", None),
        (OLD_GEMM, "gemm", "float16"),
        (OLD_CAST_GEMM, "gemm", "float32"),
        (OLD_CONVOLUTION, "CaskConvolution", "float32"),
        (OLD_REFORMAT, "Reformat", None),
    ],
)
def test_the_type_that_a_layer_multiplies_in(
    line: str, layer_type: str, product: str | None
) -> None:
    (layer,) = read_layers([line])
    assert layer.layer_type == layer_type
    assert layer.product_dtype == product


def test_what_a_line_says() -> None:
    (layer,) = read_layers([f"  {RTX_GEMM}\n"])
    assert layer.name == "node_linear_2+node_linear_1_myl2_2"
    assert layer.inputs == (LoggedTensor("x", (1, -1, 128), "float16"),)
    assert layer.constants == (
        LoggedTensor("w", (1, 128, 512), "float16"),
        LoggedTensor("alpha", (1,), "float32"),
    )
    assert layer.outputs == (LoggedTensor("y", (1, -1, 512), "float16"),)
    (old,) = read_layers([OLD_CONVOLUTION])
    assert [tensor.dtype for tensor in old.inputs + old.outputs] == ["float16", "float32"]


def test_a_summary() -> None:
    lines = [RTX_SHAPES, RTX_GEMM, RTX_GEMM, RTX_NORM, RTX_PLUGIN, "Engine Metadata:", ""]
    realised = summarise(read_layers(lines))
    assert realised.layers == 5
    assert realised.precision == "float16"
    assert realised.by_type == {
        "custom_layer": {"float16": 1},
        "gemm": {"float16": 2},
        "kgen": {"float16": 1},
        "shape_call": {"none": 1},
    }


def test_one_product_in_another_type_shows() -> None:
    realised = summarise(read_layers([RTX_GEMM, RTX_GEMM, OLD_CONVOLUTION]))
    assert realised.precision == "float16+float32"
    assert realised.products["float32"] == ["/f.0/Conv + /f.1/Relu"]
    assert summarise([]).precision == ""


def test_the_narrowest_type() -> None:
    assert narrowest(["float32", "int64", "bfloat16"]) == "bfloat16"
    assert narrowest(["int64"]) is None


@given(st.text(alphabet=st.sampled_from("Name:[]{},- \nDatypHlfLrTIu19"), max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    lines = [text, f"Name: a, LayerType: b{text}", RTX_GEMM[: len(text)], RTX_GEMM + text]
    assert summarise(read_layers(lines)).layers <= len(lines)


@given(st.integers(0, len(RTX_GEMM)))
def test_a_line_that_was_cut_claims_no_other_type(length: int) -> None:
    for layer in read_layers([RTX_GEMM[:length]]):
        assert layer.product_dtype in (None, "float16")


# How builders write each format, by the name that a target has for it.
WRITTEN = {
    Precision.FLOAT32: ("Float", "FP32"),
    Precision.FLOAT16: ("Half", "FP16"),
    Precision.BFLOAT16: ("BFloat16", "BF16"),
    Precision.FP8: ("FP8", "Float8"),
    Precision.NVFP4: ("FP4",),
}


@pytest.mark.parametrize(("precision", "words"), WRITTEN.items(), ids=str)
def test_the_precision_of_a_listing_is_that_of_a_target(
    precision: Precision, words: tuple[str, ...]
) -> None:
    """The two are compared as strings: fp8 must not be float8 on one side."""
    for word in (*words, precision):
        realised = summarise(read_layers([RTX_GEMM.replace("Half", word)]))
        assert realised.precision == precision
        assert realised.by_type == {"gemm": {precision: 1}}


def test_no_floating_format_of_a_target_is_forgotten() -> None:
    assert WRITTEN.keys() == {one for one in Precision if one.dtype.is_float}


def test_the_narrowest_of_all_formats_comes_first() -> None:
    assert [dtype.bits for dtype in NARROWEST_FIRST] == [4, 8, 8, 16, 16, 32, 64]
    assert narrowest(["bfloat16", "fp8"]) == "fp8"
    assert narrowest(["fp8", "nvfp4"]) == "nvfp4"


RTX_FOUR_BITS = (
    "Name: __myl_ReplCastMulCastFc_myl2_2, LayerType: runtime_fusion, "
    f"Inputs: [ {tensor('x', '1,-1,128', 'Half')}], "
    f"Constants: [ {tensor('numbers', '1,128,512', 'Int4')}, "
    f"{tensor('scales', '1,2,512', 'Half')}], "
    f"Outputs: [ {tensor('y', '1,-1,512', 'Half')}]"
)
RTX_WIDENED = (
    "Name: __myl_ReplCastMulCast_myl4_2, LayerType: kgen, Inputs: [], "
    f"Constants: [ {tensor('numbers', '1,128,512', 'Int8')}, "
    f"{tensor('scales', '1,4,512', 'Half')}], "
    f"Outputs: [ {tensor('w', '1,128,512', 'Half')}]"
)


def test_weights_in_few_bits_count_where_a_product_reads_them() -> None:
    realised = summarise(read_layers([RTX_FOUR_BITS, RTX_FOUR_BITS, RTX_WIDENED]))
    assert realised.few_bits == {"int4": 2 * 128 * 512}
    assert realised.precision == "float16"


def test_one_group_of_all_channels_is_a_product_too() -> None:
    line = RTX_FOUR_BITS.replace("1,2,512", "1,1,512")
    assert summarise(read_layers([line])).precision == "float16"
