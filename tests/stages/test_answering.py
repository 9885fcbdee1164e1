# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that no question could be put to is refused by the build, with file and key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tc_export.bundle import Profile
from tc_export.errors import CheckpointError, UsageError
from tc_export.runtime.rehearsal import rehearse
from tests.bundled import request_for, save_with_tokenizer
from tests.checkpoint.families import VISION, edit_config
from tests.cli.running import run
from tests.repository import DEMO_CHECKPOINT
from tests.stages.conftest import built

SIZE = VISION["image_size"]
PROFILE = Profile(max_frames=4, max_length=120)
PLAIN = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer, and no word on preprocessing."""
    return save_with_tokenizer(tmp_path_factory.mktemp("good") / "checkpoint")


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    """One that may be spoiled."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file, which is made where it is not there; None removes a key."""
    document = json.loads(file.read_text()) if file.exists() else {}
    document |= values
    file.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def build(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> tuple[int, str]:
    output = checkpoint.with_name("bundle")
    options = ("--checkpoint", checkpoint, "--output", output, "--max-frames", 4)
    code, _, err = run(capsys, "build", *options, "--no-parity")
    assert not output.exists()
    assert "export the" not in err  # it ends before the stages that take long
    return code, err


def preprocessing(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "preprocessor_config.json", **PLAIN | values)


def template(source: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(source)


def template_of_the_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template="{{ messages[0].role }}")


def ends_with(*tokens: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "generation_config.json", eos_token_id=list(tokens))


def ends_with_unknown_token(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_config(folder, lambda document: document["text_config"].update(eos_token_id=999_999))


def another_beginning(token: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", bos_token=token)


def one_token_more(folder: Path) -> None:
    """In the vocabulary, where a question may name it."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["What?"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


NO_PLACE = "{{ messages[0].role }}"
ENDLESS = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
SENSELESS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a number in the place of a token": (another_beginning(5), ("tokenizer", "bos_token")),
    "a list in the place of a token": (another_beginning(["<s>"]), ("tokenizer", "bos_token")),
    "a token without an embedding": (
        another_beginning("<begin>"),
        ("tokenizer.json", "outside the model's vocabulary", "'<begin>' is", "vocab_size"),
    ),
    "a word without an embedding": (one_token_more, ("tokenizer.json", "'What?' is 100000")),
    "no JSON for a tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        ("tokenizer", "cannot be read"),
    ),
    "an end that is no token": (
        ends_with(2, 100_000),
        ("generation_config.json", "eos_token_id", "100000"),
    ),
    "an end below all tokens": (ends_with(-1), ("generation_config.json", "eos_token_id", "-1")),
    "true for an end": (ends_with(True), ("generation_config.json", "eos_token_id", "True")),
    "no end": (ends_with(), ("generation_config.json", "eos_token_id", "[]")),
    "an end in config.json": (ends_with_unknown_token, ("/config.json", "eos_token_id", "999999")),
    "no JSON for preprocessing": (
        lambda folder: (folder / "preprocessor_config.json").write_text("["),
        ("preprocessor_config.json", "JSON"),
    ),
    "frames of another size": (
        preprocessing(size={"height": SIZE + 1, "width": SIZE}),
        ("preprocessor_config.json", f"becomes {SIZE + 1} x {SIZE}", f"takes {SIZE} x {SIZE}"),
    ),
    "frames that keep their shape": (
        preprocessing(size={"shortest_edge": SIZE}),
        ("preprocessor_config.json", "a frame of 53 x 37", "do_center_crop"),
    ),
    "frames that are not resized": (
        preprocessing(do_resize=False),
        ("preprocessor_config.json", "becomes 53 x 37", "do_resize"),
    ),
    "frames of a gigabyte": (
        preprocessing(size={"shortest_edge": 1_000_000}),
        ("preprocessor_config.json", "resize", "less than or equal to 4096"),
    ),
    "a crop of a gigabyte": (
        preprocessing(do_center_crop=True, crop_size=1_000_000),
        ("preprocessor_config.json", "crop", "less than or equal to 4096"),
    ),
    "pixels without end": (
        preprocessing(rescale_factor=1e300),
        ("preprocessor_config.json", "numbers of up to inf", "rescale_factor"),
    ),
    "pixels that are all alike": (
        preprocessing(rescale_factor=1e-9),
        ("preprocessor_config.json", "that spread by", "rescale_factor"),
    ),
    "pixels as they are stored": (
        preprocessing(do_rescale=False, do_normalize=False),
        ("preprocessor_config.json", "up to 255", "do_rescale"),
    ),
    "a deviation of nothing": (
        preprocessing(image_std=[0.2, 0, 0.2]),
        ("preprocessor_config.json", "std"),
    ),
    "a mean that is no number": (
        preprocessing(image_mean=[0.5, float("nan"), 0.5]),
        ("preprocessor_config.json", "mean"),
    ),
    "a filter that is none": (preprocessing(resample=9), ("preprocessor_config.json", "resample")),
    "a template that is none": (template("{% if %}"), ("chat_template.jinja", "compiled")),
    "a template without a place": (template(NO_PLACE), ("chat_template.jinja", "no place")),
    "a template without an end": (template(ENDLESS), ("chat_template.jinja", "more than")),
    "a template elsewhere": (template_of_the_tokenizer, ("tokenizer_config.json", "no place")),
}


@pytest.mark.parametrize("kind", SENSELESS)
def test_what_cannot_be_asked_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, words = SENSELESS[kind]
    spoil(checkpoint)
    code, err = build(capsys, checkpoint)
    assert code == 3
    for word in words:
        assert word in err
    assert ".bundle.building" not in err  # the user's own files are named
    assert str(checkpoint) in err


def test_a_checkpoint_without_a_tokenizer_is_refused_before_anything(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    code, err = build(capsys, checkpoint)
    assert code == 3
    assert "no tokenizer: neither tokenizer.json nor tokenizer.model" in err
    assert "check the weights" not in err
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_a_profile_without_room_for_a_question(good: Path) -> None:
    with pytest.raises(UsageError, match="about one frame") as caught:
        rehearse(good, Profile(max_frames=1, max_length=5))
    needed = int(str(caught.value.hint).split("--max-length ")[1].split()[0])
    rehearse(good, Profile(max_frames=1, max_length=needed))
    with pytest.raises(UsageError):
        rehearse(good, Profile(max_frames=1, max_length=needed - 1))


@pytest.mark.parametrize(
    "make",
    [
        preprocessing(),
        preprocessing(do_normalize=False),
        preprocessing(size=SIZE, do_center_crop=True, crop_size=SIZE),
        template("USER: <image>\n{{ messages[0].content[1].text }}"),
        lambda folder: edit_config(folder, lambda x: x.update(image_aspect_ratio="pad")),
    ],
)
def test_what_makes_sense_is_taken(checkpoint: Path, make: Callable[[Path], object]) -> None:
    make(checkpoint)
    rehearse(checkpoint, PROFILE)


def test_the_demonstration_makes_sense() -> None:
    rehearse(DEMO_CHECKPOINT, PROFILE)


def test_a_placeholder_may_be_outside_the_vocabulary(checkpoint: Path) -> None:
    """A clip stands in its place: nobody looks its embedding up, in transformers neither."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    (image,) = [token for token in tokenizer["added_tokens"] if token["content"] == "<image>"]
    rows = image["id"]
    edit_config(checkpoint, lambda document: document["text_config"].update(vocab_size=rows))
    rehearse(checkpoint, PROFILE)
    edit_config(checkpoint, lambda document: document["text_config"].update(vocab_size=rows - 1))
    with pytest.raises(CheckpointError, match="the ids of 1 token"):
        rehearse(checkpoint, PROFILE)


def test_it_is_tried_again_when_what_it_reads_changes(checkpoint: Path) -> None:
    request = replace(request_for(checkpoint, checkpoint.with_name("out")), check_parity=False)
    built(request)
    preprocessing()(checkpoint)
    assert built(request)[1] == ["assets", "answering"]
    assert built(request)[1] == []
