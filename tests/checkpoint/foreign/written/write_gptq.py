# SPDX-License-Identifier: Apache-2.0
"""AutoGPTQ packs its matrices: `python -m` this module, with auto-gptq installed.

Scales and zero points are its quantiser's, rounded to the nearest: what GPTQ finds is packed the
same way. It packs no matrix with a side that 32 does not divide, and those stay as they are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.checkpoint.foreign.written import FILES
from tests.checkpoint.foreign.written.float_model import (
    Tensors,
    layers_of,
    save_dequantised,
    save_float,
    save_packed,
)

# Its models need an older transformers; what packs does not, and is taken without them.
_PACKAGE = ModuleType("auto_gptq")
_PACKAGE.__path__ = list(find_spec("auto_gptq").submodule_search_locations)
sys.modules["auto_gptq"] = _PACKAGE

from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear  # noqa: E402
from auto_gptq.quantization.quantizer import Quantizer  # noqa: E402

SCHEMES: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 16, "sym": True},
    "int4-zero-points": {"bits": 4, "group_size": 16, "sym": False},
    "int8": {"bits": 8, "group_size": -1, "sym": True},
}


def pack(scheme: dict[str, Any], linear: nn.Linear) -> nn.Module | None:
    N, K = linear.weight.shape
    if N % 32 or K % 32:
        return None
    size = K if scheme["group_size"] == -1 else scheme["group_size"]
    quantizer = Quantizer()
    quantizer.configure(scheme["bits"], perchannel=True, sym=scheme["sym"])
    quantizer.find_params(linear.weight.data.float().reshape(-1, size), weight=True)
    scales, zeros = (x.reshape(N, K // size) for x in (quantizer.scale, quantizer.zero))
    packed = QuantLinear(scheme["bits"], scheme["group_size"], K, N, bias=False)
    packed.pack(linear, scales, zeros, packed.g_idx)
    return packed


def dequantised(scheme: dict[str, Any], parts: Tensors) -> torch.Tensor:
    """What its layer, on a processor, makes of a unit in each channel: the weight, in float32."""
    K, N = len(parts["g_idx"]), parts["scales"].shape[1]
    layer = QuantLinear(
        scheme["bits"], scheme["group_size"], K, N, bias=False, weight_dtype=torch.float32
    )
    layer.load_state_dict({**parts, "scales": parts["scales"].float()})
    return layer(torch.eye(K)).t()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = save_float(Path(temporary) / "float")
        for name, scheme in SCHEMES.items():
            folder = FILES / f"gptq-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            stated = {"quant_method": "gptq", "desc_act": False, **scheme}
            save_packed(source, folder, stated, partial(pack, scheme))
            layers = layers_of(folder, "qweight")
            save_dequantised(folder, {x: dequantised(scheme, y) for x, y in layers.items()})


if __name__ == "__main__":
    main()
