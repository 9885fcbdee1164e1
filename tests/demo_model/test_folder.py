# SPDX-License-Identifier: Apache-2.0
"""The written checkpoint: read by our reader and by transformers, with the same weights."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import AttentionMask, ModelConfig, PoolingConfig, TemporalConfig
from tc_export.demo_model.card import TestResult, card_files
from tc_export.demo_model.config import TrainingConfig
from tc_export.demo_model.folder import write_checkpoint
from tc_export.demo_model.state import Curves, Run
from tc_export.demo_model.trainer import new_model
from tc_export.errors import UsageError
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Kind

RESULT = TestResult(
    items_each=60,
    accuracy={kind: 0.9 + 0.004 * number for number, kind in enumerate(Kind)},
    best_guess={kind: 1 / len(kind.answers) for kind in Kind},
)


def test_our_reader_gets_the_same_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    unusual = {
        "temporal": TemporalConfig(gamma=0.5, mask=AttentionMask.CAUSAL),
        "pooling": PoolingConfig(stride=4, mode="max", before_projector=True),
    }
    model = new_model(config.model_copy(update=unusual), seed=3)
    write_checkpoint(model, tokenizer, tmp_path / "tiny", card={"README.md": b"# card\n"})
    checkpoint = open_checkpoint(tmp_path / "tiny")
    assert checkpoint.config.model == model.config
    assert checkpoint.config.image_token_id == tokenizer.convert_tokens_to_ids("<video>")
    assert checkpoint.config.eos_token_ids == (tokenizer.eos_token_id,)
    loaded = checkpoint.load_model().state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.filterwarnings("ignore:.*torchvision.*")
def test_transformers_reads_every_weight(
    model: TcLlava, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(model, tokenizer, folder, card={})
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    layer = theirs.model.vision_tower.encoder.layers[1].mlp.fc1.weight
    assert torch.equal(layer, model.vision.vision_tower.layers[1].mlp.fc1.weight)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.text.vocab_size
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": model.config.vision.image_size}
    assert processor["num_frames"] == 8


def test_a_checkpoint_is_replaced_and_nothing_else(
    model: TcLlava, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(model, tokenizer, folder, card={"old.md": b""})
    write_checkpoint(model, tokenizer, folder, card={"new.md": b""})
    assert (folder / "new.md").exists()
    assert not (folder / "old.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        write_checkpoint(model, tokenizer, tmp_path / "mine", card={})
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_card_states_what_was_measured(model: TcLlava) -> None:
    by_kind = {kind.value: 0.5 for kind in Kind}
    curves = Curves(loss=[(50, 2.0), (100, 1.0)], validation=[(50, by_kind), (100, by_kind)])
    config = TrainingConfig(steps=100, seed=7)
    run = Run(config=config, prolongs=[60], step=100, seconds=120.0, curves=curves)
    files = card_files(model, run, RESULT, "python train.py")
    text = files["README.md"].decode()
    assert "Overall **92.2 %**; worst kind that needs time: direction, 90.0 %" in text
    assert "| speed | yes | 92.0 | 16.7 |" in text
    assert "| position | no | 94.4 | 25.0 |" in text
    assert "100 steps of 32 items, seed 7" in text
    assert "2 minutes of wall time" in text
    assert (
        "    python train.py --steps 60 --seed 7\n"
        "    python train.py --steps 100 --seed 7 --resume\n" in text
    )
    assert "720 items" in text
    assert json.loads(files["curves.json"])["loss"] == [[50, 2.0], [100, 1.0]]
    assert f"]({'curves.png'})" in text
    with Image.open(io.BytesIO(files["curves.png"])) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10_000)
    assert picture.size == (900, 324)
    assert colours is not None
    assert len(colours) > len(Kind)
