# SPDX-License-Identifier: Apache-2.0
"""llm-compressor writes its checkpoints: `python -m` this module, with llm-compressor installed."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from tokenizers import Tokenizer, models
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from tests.checkpoint.foreign.written import FILES
from tests.checkpoint.foreign.written.float_model import (
    Tensors,
    layers_of,
    save_dequantised,
    save_float,
    token_ids,
)

IGNORED = ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]


def _static(kind: str) -> dict[str, Any]:
    common = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": False}
    return {
        "weights": {**common, "strategy": "channel"},
        "input_activations": {**common, "strategy": "tensor"},
    }


def _int4(*, symmetric: bool) -> dict[str, Any]:
    common = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    return {"weights": {**common, "symmetric": symmetric}}


SCHEMES: dict[str, str | dict[str, Any]] = {
    "fp8": "FP8",
    "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-channel": _static("float"),
    "nvfp4": "NVFP4",
    "nvfp4-a16": "NVFP4A16",
    "int8-static": _static("int"),
    "int8-dynamic": "W8A8",
    "int4": _int4(symmetric=True),
    "int4-zero-points": _int4(symmetric=False),
}
"""By the names of their folders: a scheme that llm-compressor ships, or one of its language."""


def write(source: Path, scheme: str | dict[str, Any], folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto")
    chosen = (
        {"targets": "Linear", "scheme": scheme}
        if isinstance(scheme, str)
        else {"config_groups": {"group_0": {**scheme, "targets": ["Linear"]}}}
    )
    oneshot(
        model=model,
        recipe=[QuantizationModifier(ignore=IGNORED, **chosen)],
        processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))),
        dataset=Dataset.from_dict({"input_ids": token_ids().tolist()}),
        num_calibration_samples=len(token_ids()),
        pipeline="basic",
    )
    model.save_pretrained(folder, save_compressed=True)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    made_by = QuantizationScheme(**group)
    layers = layers_of(folder, "weight_scale")
    save_dequantised(
        folder,
        {name: dequantised(config["format"], made_by, parts) for name, parts in layers.items()},
    )


def dequantised(form: str, scheme: QuantizationScheme, parts: Tensors) -> torch.Tensor:
    """The library's own, with scales widened before: in float32 no product is rounded twice."""
    scale = parts["weight_scale"].float()
    if form != "nvfp4-pack-quantized":
        found = BaseCompressor.get_value_from_registry(form).decompress(
            {**parts, "weight_scale": scale}, scheme
        )
        return found["weight"].detach()
    rows, bytes_in_row = parts["weight_packed"].shape
    return dequantize(
        unpack_fp4_from_uint8(parts["weight_packed"], rows, 2 * bytes_in_row, torch.float32),
        scale=scale,
        args=scheme.weights,
        global_scale=parts["weight_global_scale"],
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = save_float(Path(temporary) / "float")
        for name, scheme in SCHEMES.items():
            folder = FILES / f"compressed-tensors-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            write(source, scheme, folder)


if __name__ == "__main__":
    main()
