# SPDX-License-Identifier: Apache-2.0
"""ModelOpt writes its checkpoints: `python -m` this module, with nvidia-modelopt installed."""

from __future__ import annotations

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
from modelopt.torch.quantization.utils import update_quant_cfg_with_kv_cache_quant
from transformers import LlavaForConditionalGeneration

from tests.checkpoint.foreign.written import FILES
from tests.checkpoint.foreign.written.float_model import (
    Tensors,
    layers_of,
    save_dequantised,
    save_float,
    token_ids,
)


def with_cache(scheme: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """A scheme that rounds keys and values too."""
    entries = update_quant_cfg_with_kv_cache_quant(deepcopy(scheme), cache["quant_cfg"])
    return cast("dict[str, Any]", entries)


SCHEMES: dict[str, dict[str, Any]] = {
    "fp8": mtq.FP8_DEFAULT_CFG,
    "fp8-cache": with_cache(mtq.FP8_DEFAULT_CFG, mtq.FP8_KV_CFG),
    "fp8-channel": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
    "nvfp4-a16": mtq.W4A16_NVFP4_CFG,
}


def write(source: Path, scheme: dict[str, Any], folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto")
    mtq.quantize(model, scheme, lambda model: model(input_ids=token_ids()))
    export_hf_checkpoint(model, export_dir=folder)
    layers = layers_of(folder, "weight_scale")
    save_dequantised(folder, {name: dequantised(parts) for name, parts in layers.items()})


def dequantised(parts: Tensors) -> torch.Tensor:
    """The library's own, in float32."""
    weight, scale = parts["weight"], parts["weight_scale"]
    if "weight_scale_2" not in parts:
        rows = scale.view(-1, 1) if scale.dim() else scale
        return FP8QTensor(weight.shape, torch.float32, weight).dequantize(scale=rows)
    shape = torch.Size((len(weight), 2 * weight.shape[1]))
    return NVFP4QTensor(shape, torch.float32, weight).dequantize(
        scale=scale, double_scale=parts["weight_scale_2"], block_sizes={-1: 16}
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = save_float(Path(temporary) / "float")
        for name, scheme in SCHEMES.items():
            folder = FILES / f"modelopt-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            write(source, scheme, folder)


if __name__ == "__main__":
    main()
