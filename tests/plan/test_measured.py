# SPDX-License-Identifier: Apache-2.0
"""The planner's prediction for the CPU against what a process that answers really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.contracts.graph_io import GRAPHS
from tc_export.dtypes import DType
from tc_export.plan.planner import make_plan
from tc_export.targets import load_target, read_precisions
from tests.exported import export_graph
from tests.repository import REPOSITORY

DECODE_STEPS = 3
WITHIN = 0.1


def save_model(folder: Path) -> None:
    """A LLaVA of 140 million random weights in few layers: wide is quick to export."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=3,
            num_attention_heads=8,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=4000,
            hidden_size=1536,
            intermediate_size=4608,
            num_hidden_layers=4,
            num_attention_heads=12,
            num_key_value_heads=6,
            max_position_embeddings=4096,
        ),
        image_token_index=3999,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    save_model(folder)
    checkpoint = open_checkpoint(folder)
    for name in GRAPHS:
        export_graph(name, checkpoint, DType.FLOAT32, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc/self/status")
@pytest.mark.parametrize("frames", [2, 8])
def test_memory_is_predicted_within_a_tenth(engines: Path, frames: int) -> None:
    checkpoint = open_checkpoint(engines)
    cpu = load_target("cpu")
    plan = make_plan(checkpoint.config.model, cpu, read_precisions(None, cpu), frames)
    arguments = (frames, plan.workload.length, DECODE_STEPS)
    printed = subprocess.run(
        [sys.executable, "-m", "tests.plan.answer_once", str(engines), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ).stdout
    measured = int(printed)
    # What the system keeps for itself is no part of the process.
    predicted = plan.total_bytes - plan.bytes_by_part["os_reserve"]
    print(f"{frames} frames: predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert plan.bytes_by_part["runtime"] < measured / 2  # the model's part is the larger
    assert abs(predicted - measured) <= WITHIN * measured
