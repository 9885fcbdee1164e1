# SPDX-License-Identifier: Apache-2.0
"""One small model and its tokenizer, on one thread: more threads cost more than they give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tc_export.config import ModelConfig
from tc_export.demo_model.batches import Batcher
from tc_export.demo_model.config import tiny_model
from tc_export.demo_model.tokenizer import make_tokenizer
from tc_export.demo_model.trainer import new_model
from tc_export.model.tc_llava import TcLlava


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="package")
def config(tokenizer: PreTrainedTokenizerFast) -> ModelConfig:
    return tiny_model(len(tokenizer))


@pytest.fixture
def model(config: ModelConfig) -> TcLlava:
    return new_model(config, seed=1)


@pytest.fixture(scope="package")
def batcher(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Batcher:
    return Batcher(config, tokenizer)
