# SPDX-License-Identifier: Apache-2.0
"""AutoAWQ packs its matrices: `python -m` this module, with autoawq installed.

Scales and zero points are its quantiser's, without the search before. The folder is saved by
transformers, as AutoAWQ does it. A matrix whose rows 32 does not divide it cannot pack: it stays.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from awq.models._config import AwqConfig
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from torch import nn

from tests.checkpoint.foreign.written import FILES
from tests.checkpoint.foreign.written.float_model import (
    layers_of,
    save_dequantised,
    save_float,
    save_packed,
)

CONFIG = AwqConfig(q_group_size=16)


def pack(linear: nn.Linear) -> WQLinear_GEMM | None:
    if linear.out_features % 32:
        return None
    settings = SimpleNamespace(
        group_size=CONFIG.q_group_size, w_bit=CONFIG.w_bit, zero_point=CONFIG.zero_point
    )
    _, scales, zeros = AwqQuantizer.pseudo_quantize_tensor(settings, linear.weight.data)
    return WQLinear_GEMM.from_linear(
        linear, CONFIG.w_bit, CONFIG.q_group_size, False, scales.t(), zeros.t()
    )


def dequantised(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    weight_KN = dequantize_gemm(
        parts["qweight"],
        parts["qzeros"],
        parts["scales"].float(),
        CONFIG.w_bit,
        CONFIG.q_group_size,
    )
    return weight_KN.t()


def main() -> None:
    folder = FILES / "awq"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = save_float(Path(temporary) / "float")
        save_packed(source, folder, CONFIG.to_transformers_dict(), pack)
    layers = layers_of(folder, "qweight")
    save_dequantised(folder, {name: dequantised(parts) for name, parts in layers.items()})


if __name__ == "__main__":
    main()
