# SPDX-License-Identifier: Apache-2.0
"""A process of its own: open the engines of a folder, answer once, print the peak resident set."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tc_export.checkpoint.hf_config import read_config
from tc_export.contracts.graph_io import FRAMES_A_CALL
from tc_export.engine.loading import load_engines
from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Clip, Text


def peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` would also know the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(folder: Path, frames: int, length: int, decode_steps: int) -> None:
    config = read_config(folder).model
    engines = load_engines(folder, {}, native=False, threads=1)
    random = np.random.default_rng(0)
    size = config.vision.image_size
    features = []
    for start in range(0, frames, FRAMES_A_CALL):
        shape = (min(FRAMES_A_CALL, frames - start), 3, size, size)
        pixels = random.standard_normal(shape, dtype=np.float32)
        features.append(engines.vision.run({"pixel_values": pixels})["visual_features"])
    visual = np.concatenate(features).reshape(-1, config.text.hidden_size)
    text = length - len(visual) - decode_steps
    words = random.standard_normal((text, config.text.hidden_size), dtype=np.float32)
    session = DecoderSession(engines.decoder, config, length)
    session.prefill(
        np.concatenate([visual, words]), [Clip(frames, config.tokens_per_frame), Text(text)]
    )
    for _ in range(decode_steps):
        session.step(words[0])
    print(peak_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
