# SPDX-License-Identifier: Apache-2.0
"""NNCF's four bits: reads a LlamaForCausalLM, and writes the weights that its numbers stand for.

Runs in an environment of its own, and imports nothing of this project:

    python nncf_weights.py GIVEN FOUND [--awq] [--scale]

`weights.safetensors` holds the matrices of the layers [N, K] in float32, `bytes.json` what their
numbers and scales take. Embedding and head stay as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import torch
from nncf.torch.function_hook import get_hook_storage
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

GROUP_SIZE = 64


def main(given: Path, found: Path, flags: list[str]) -> None:
    """Compress, and write what came of it."""
    model = LlamaForCausalLM.from_pretrained(given, dtype=torch.float32).eval()
    texts = np.load(given / "calibration.npz").values()
    inputs = [{"input_ids": torch.from_numpy(ids)[None], "use_cache": False} for ids in texts]
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP_SIZE,
        ratio=1.0,
        ignored_scope=nncf.IgnoredScope(patterns=[".*embed_tokens.*", ".*lm_head.*"]),
        dataset=nncf.Dataset(inputs),
        awq="--awq" in flags or None,
        scale_estimation="--scale" in flags or None,
    )
    weights, stored_bytes = widened(compressed)
    found.mkdir()
    save_file(weights, found / "weights.safetensors")
    (found / "bytes.json").write_text(json.dumps(stored_bytes))


@torch.no_grad()
def widened(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """The weights in float32 by their names below the decoder, and the bytes they are stored in."""
    storage = get_hook_storage(model)
    if len(storage.pre_hooks):
        raise SystemExit(f"factors that are no part of a weight: {[*storage.pre_hooks]}")
    weights, stored_bytes = {}, 0
    for key, hooks in storage.post_hooks.items():
        name = key.rpartition("__")[0].replace(":", ".")
        packed = model.get_parameter(name)
        (hook,) = hooks.values()
        weights[name.removeprefix("model.")] = hook(packed).contiguous()
        stored_bytes += packed.nbytes + sum(buffer.nbytes for buffer in hook.buffers())
    return weights, stored_bytes


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
