# SPDX-License-Identifier: Apache-2.0
"""Tokenizer, template, preprocessing and end tokens: each fault in a bundle's files is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tc_export.checkpoint.hf_config import read_config
from tc_export.parity.assets import check, tokens
from tc_export.parity.assets.comparison import first_difference
from tc_export.runtime.prompt import PromptBuilder
from tests.bundled import save_with_tokenizer
from tests.checkpoint.families import edit_config, save_small
from tests.parity.assets.folders import (
    compare,
    copy_demo,
    edit_json,
    make_assets,
    the_failure,
)
from tests.runtime.test_prompt import CHATML, KINDS, LLAVA, WITH_BOS
from tests.runtime.tokenizers_for_tests import byte_level, sentencepiece_like

NAMES = [
    "embedding table",
    "tokenizer: vocabulary and rules",
    "tokenizer: texts",
    "tokenizer: special tokens",
    "chat template",
    "prompts",
    "preprocessing",
    "end tokens",
]
Document = dict[str, Any]


def test_the_demo_passes(tmp_path: Path) -> None:
    findings = compare(*make_assets(copy_demo(tmp_path), tmp_path))
    assert [x.name for x in findings.comparisons] == NAMES
    assert all(x.passed for x in findings.comparisons), findings
    assert findings.notes == []


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_and_templates_of_every_kind_pass(kind: str, tmp_path: Path) -> None:
    make, template, _ = KINDS[kind]
    tokenizer = make()
    checkpoint = save_small(tmp_path / "checkpoint", text={"vocab_size": len(tokenizer)})
    edit_config(checkpoint, lambda document: document.update(image_token_index=3))
    tokenizer.save_pretrained(checkpoint)
    if template is not None:
        (checkpoint / "chat_template.jinja").write_text(template)
    findings = compare(*make_assets(checkpoint, tmp_path))
    assert all(x.passed for x in findings.comparisons), findings
    assert [x.name for x in findings.comparisons] == NAMES


# Tokenizer


def swap_merges(document: Document) -> None:
    merges = document["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def swap_ids(document: Document) -> None:
    vocabulary = document["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def a_token_eats_spaces(document: Document) -> None:
    document["added_tokens"][-1]["rstrip"] = True


def no_first_token(document: Document) -> None:
    document["post_processor"] = None


TOKENIZER_FAULTS: dict[str, tuple[Callable[[Document], None], str]] = {
    "two merges swapped": (swap_merges, "model.merges["),
    "two ids swapped": (swap_ids, "model.vocab."),
    "a token takes the space after it": (a_token_eats_spaces, "added_tokens["),
    "no first token": (no_first_token, "post_processor is null"),
}


@pytest.mark.parametrize("name", TOKENIZER_FAULTS)
def test_a_changed_tokenizer_is_named_by_its_part(tmp_path: Path, name: str) -> None:
    fault, place = TOKENIZER_FAULTS[name]
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    edit_json(made / "tokenizer.json", fault)
    failed = {x.name: x for x in compare(made, checkpoint).comparisons if not x.passed}
    assert failed["tokenizer: vocabulary and rules"].found.startswith(place)
    if name == "no first token":
        assert failed["tokenizer: texts"].note == "ids of ''"


def test_padding_and_truncation_are_no_difference(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    made, checkpoint = make_assets(source, tmp_path)
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit_json(made / "tokenizer.json", lambda document: document.update(truncation=cut))
    assert all(x.passed for x in compare(made, checkpoint).comparisons)


def test_a_special_token_that_is_another_is_named(tmp_path: Path) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    edit_json(
        made / "special_tokens_map.json", lambda x: x.update(unk_token="<pad>", eos_token=None)
    )
    edit_json(made / "tokenizer_config.json", lambda x: x.update(eos_token="<pad>"))
    failed, in_the_template = [x for x in compare(made, checkpoint).comparisons if not x.passed]
    assert failed.name == "tokenizer: special tokens"
    assert "<pad>USER:" in in_the_template.found
    assert "'eos_token': '<pad>'" in failed.found
    assert "'eos_token': '</s>'" in failed.expected


def test_a_tokenizer_that_is_broken_or_gone_fails(tmp_path: Path) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    for damage in (lambda path: path.write_text("{}"), lambda path: path.unlink()):
        damage(made / "tokenizer.json")
        failed = [x for x in compare(made, checkpoint).comparisons if not x.passed]
        assert {x.name for x in failed} >= {"tokenizer", "chat template"}


def test_texts_alone_show_what_the_rules_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's own reading is judged, not the file alone."""
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    real = tokens.Tokenizer.encode

    def without_leading_space(self: Any, text: str, *, special: bool = False) -> list[int]:
        return real(self, text.lstrip(" "), special=special)

    monkeypatch.setattr(tokens.Tokenizer, "encode", without_leading_space)
    failed = {x.name: x for x in compare(made, checkpoint).comparisons if not x.passed}
    assert failed["tokenizer: texts"].note == "ids of ' '"


# Template and prompts


def test_a_space_more_in_the_template_is_named(tmp_path: Path) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    file = made / "chat_template.jinja"
    file.write_text(file.read_text().replace("ASSISTANT:", "ASSISTANT: "))
    failed = {x.name: x for x in compare(made, checkpoint).comparisons if not x.passed}
    template = failed["chat template"]
    assert template.found.endswith("ASSISTANT: '")
    assert template.expected.endswith("ASSISTANT:'")
    assert template.note.startswith("rendering of one turn, from character ")
    assert "prompts" in failed


@pytest.mark.parametrize("in_bundle", [True, False])
def test_a_template_on_one_side_alone_is_a_difference(tmp_path: Path, in_bundle: bool) -> None:
    source = save_with_tokenizer(tmp_path / "checkpoint")
    if not in_bundle:
        (source / "chat_template.jinja").write_text(LLAVA)
    made, checkpoint = make_assets(source, tmp_path)
    if in_bundle:
        (made / "chat_template.jinja").write_text(LLAVA)
    else:
        (made / "chat_template.jinja").unlink()
    failed = next(x for x in compare(made, checkpoint).comparisons if x.name == "chat template")
    assert not failed.passed
    none = "none: Vicuna's prompt"
    assert (failed.expected if in_bundle else failed.found) == none


def test_only_later_turns_differ(tmp_path: Path) -> None:
    source = save_with_tokenizer(tmp_path / "checkpoint")
    (source / "chat_template.jinja").write_text(LLAVA)
    made, checkpoint = make_assets(source, tmp_path)
    wrong = LLAVA.replace(
        "{% endfor %}{% endfor %}", "{% endfor %}{% if loop.index > 2 %} {% endif %}{% endfor %}"
    )
    assert wrong != LLAVA
    (made / "chat_template.jinja").write_text(wrong)
    failed = the_failure(made, checkpoint)
    assert failed.note.startswith("rendering of two turns")


def test_a_template_that_refuses_more_is_a_difference(tmp_path: Path) -> None:
    source = save_with_tokenizer(tmp_path / "checkpoint")
    (source / "chat_template.jinja").write_text(CHATML)
    made, checkpoint = make_assets(source, tmp_path)
    stricter = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + CHATML
    (made / "chat_template.jinja").write_text(stricter)
    failed = the_failure(made, checkpoint)
    assert (failed.name, failed.found) == ("chat template", "a refusal")
    (made / "chat_template.jinja").write_text("{{ 1")
    assert "cannot be compiled" in next(
        x.found for x in compare(made, checkpoint).comparisons if x.name == "chat template"
    )


def test_a_first_token_put_twice_is_seen_in_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_with_tokenizer(tmp_path / "checkpoint")
    (source / "chat_template.jinja").write_text(WITH_BOS)
    made, checkpoint = make_assets(source, tmp_path)
    assert all(x.passed for x in compare(made, checkpoint).comparisons)
    monkeypatch.setattr(PromptBuilder, "_with_bos", lambda self, ids, text: [1, *ids])
    failed = the_failure(made, checkpoint)
    assert failed.name == "prompts"
    assert failed.found.startswith("[1, 1, ")


def test_a_template_that_has_room_for_one_clip_alone_is_a_difference(tmp_path: Path) -> None:
    source = save_with_tokenizer(tmp_path / "checkpoint")
    (source / "chat_template.jinja").write_text(LLAVA)
    made, checkpoint = make_assets(source, tmp_path)
    once = "<image>\n{{ messages[0]['content'][-1]['text'] }} ASSISTANT:"
    (made / "chat_template.jinja").write_text(once)
    failed = {x.name: x for x in compare(made, checkpoint).comparisons if not x.passed}
    assert "chat template" in failed
    assert failed["prompts"].note.startswith("ids of")


def test_a_vocabulary_without_placeholders_is_noted(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    source = save_small(tmp_path / "checkpoint", text={"vocab_size": len(tokenizer)})
    edit_config(source, lambda document: document.update(image_token_index=3))
    tokenizer.save_pretrained(source)
    findings = compare(*make_assets(source, tmp_path))
    assert all(x.passed for x in findings.comparisons)
    (note,) = findings.notes
    assert note.startswith("prompts: the vocabulary has neither <video> nor <image>")


# Preprocessing


def swap_mean_and_std(x: Document) -> None:
    x["image_mean"], x["image_std"] = x["image_std"], x["image_mean"]


PREPROCESSING_FAULTS: dict[str, Callable[[Document], object]] = {
    "mean and std swapped": swap_mean_and_std,
    "channels swapped": lambda x: x["image_mean"].reverse(),
    "not rescaled": lambda x: x.update(do_rescale=False),
    "rescaled by 256": lambda x: x.update(rescale_factor=1 / 256),
    "not normalised": lambda x: x.update(do_normalize=False),
    "another filter": lambda x: x.update(resample=2),
    "not cropped": lambda x: x.update(do_center_crop=False),
    "another size": lambda x: x.update(size={"shortest_edge": 33}),
    "both edges": lambda x: x.update(size={"height": 32, "width": 32}),
    "padded": lambda x: x.update(image_processor_type="LlavaImageProcessor", do_pad=True),
    "one that cannot be": lambda x: x.update(size={"longest_edge": 32}),
}


@pytest.mark.parametrize("name", PREPROCESSING_FAULTS)
def test_a_fault_in_preprocessing_is_caught(tmp_path: Path, name: str) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    edit_json(made / "preprocessor_config.json", PREPROCESSING_FAULTS[name])
    failed = the_failure(made, checkpoint)
    assert failed.name == "preprocessing"
    assert "transformers' CLIPImageProcessorPil, preprocessor_config.json" in failed.note


PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 33, "width": 44}
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 40, "width": 60}),
    "llava, padded": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, crop_size=56),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
    "llava next": LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_of_every_kind_pass(tmp_path: Path, name: str) -> None:
    source = copy_demo(tmp_path)
    PROCESSORS[name].save_pretrained(source)
    findings = compare(*make_assets(source, tmp_path))
    assert all(x.passed for x in findings.comparisons), findings
    assert findings.notes == []


@pytest.mark.parametrize("pads", [True, False])
def test_without_a_word_on_it_the_default_is_meant(tmp_path: Path, pads: bool) -> None:
    source = copy_demo(tmp_path)
    (source / "preprocessor_config.json").rename(tmp_path / "other.json")
    if pads:
        edit_config(source, lambda document: document.update(image_aspect_ratio="pad"))
    made, checkpoint = make_assets(source, tmp_path)
    passed = next(x for x in compare(made, checkpoint).comparisons if x.name == "preprocessing")
    assert passed.passed
    assert "since the checkpoint says none" in passed.note
    edit_json(tmp_path / "other.json", lambda x: x.update(size={"shortest_edge": 40}))
    (tmp_path / "other.json").rename(made / "preprocessor_config.json")
    assert the_failure(made, checkpoint).name == "preprocessing"


def test_videos_count_before_images(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    video = json.loads((source / "preprocessor_config.json").read_text())
    del video["image_processor_type"]
    video |= {"image_mean": [0.5, 0.5, 0.5], "video_processor_type": "LlavaNextVideoVideoProcessor"}
    (source / "video_preprocessor_config.json").write_text(json.dumps(video))
    made, checkpoint = make_assets(source, tmp_path)
    assert all(x.passed for x in compare(made, checkpoint).comparisons)
    (made / "video_preprocessor_config.json").unlink()
    assert the_failure(made, checkpoint).name == "preprocessing"


def test_a_processor_that_is_not_known_is_noted(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    edit_json(
        source / "preprocessor_config.json", lambda x: x.update(image_processor_type="Dreamt")
    )
    findings = compare(*make_assets(source, tmp_path))
    assert all(x.passed for x in findings.comparisons)
    assert "preprocessing" not in {x.name for x in findings.comparisons}
    (note,) = findings.notes
    assert note.startswith("preprocessing: no processor to compare with for Dreamt")


# End tokens


def test_another_end_token_is_named(tmp_path: Path) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    edit_json(made / "generation_config.json", lambda x: x.update(eos_token_id=5))
    failed = the_failure(made, checkpoint)
    assert (failed.name, failed.found, failed.expected) == ("end tokens", "[5]", "[2]")
    assert failed.note == "generation_config.json"


def test_one_of_several_end_tokens_gone_is_named(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    edit_json(source / "generation_config.json", lambda x: x.update(eos_token_id=[7, 2]))
    made, checkpoint = make_assets(source, tmp_path)
    assert all(x.passed for x in compare(made, checkpoint).comparisons)
    edit_json(made / "generation_config.json", lambda x: x.update(eos_token_id=2))
    failed = the_failure(made, checkpoint)
    assert (failed.found, failed.expected) == ("[2]", "[2, 7]")


def test_without_generation_config_the_model_says(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    (source / "generation_config.json").unlink()
    edit_config(source, lambda document: document["text_config"].update(eos_token_id=9))
    made, checkpoint = make_assets(source, tmp_path)
    findings = compare(made, checkpoint)
    assert all(x.passed for x in findings.comparisons), findings
    (note,) = findings.notes  # the tokenizer's own is still 2
    assert "the tokenizer's own, 2 (</s>), is none of [9]" in note
    edit_config(made, lambda document: document["text_config"].update(eos_token_id=2))
    failed = the_failure(made, checkpoint)
    assert (failed.found, failed.expected, failed.note) == ("[2]", "[9]", "config.json")


def test_where_transformers_would_never_stop_it_is_noted(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    edit_json(source / "generation_config.json", lambda x: x.pop("eos_token_id"))
    made, checkpoint = make_assets(source, tmp_path)
    findings = compare(made, checkpoint)
    assert all(x.passed for x in findings.comparisons)
    ours = list(read_config(source).eos_token_ids)
    assert findings.notes == [
        f"end tokens: transformers' generate would stop at none, and ours at {ours}"
    ]
    edit_json(made / "generation_config.json", lambda x: x.update(eos_token_id=5))
    assert the_failure(made, checkpoint).name == "end tokens"


# What cannot be compared


def test_a_tokenizer_that_transformers_cannot_read_is_noted(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    made, checkpoint = make_assets(source, tmp_path)
    (source / "tokenizer.json").write_text("{}")
    findings = compare(made, checkpoint)
    assert [x.name for x in findings.comparisons] == [NAMES[0], *NAMES[-2:]]
    assert all(x.passed for x in findings.comparisons)
    (note,) = findings.notes
    assert note.startswith("tokenizer: transformers cannot read it: ")


def test_without_transformers_the_embedding_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, checkpoint = make_assets(copy_demo(tmp_path), tmp_path)
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    findings = compare(made, checkpoint)
    assert [x.name for x in findings.comparisons] == NAMES[:1]
    assert "transformers is not installed" in findings.notes[0]


def test_no_code_of_the_checkpoint_is_run(tmp_path: Path) -> None:
    source = copy_demo(tmp_path)
    made, checkpoint = make_assets(source, tmp_path)
    ran = tmp_path / "ran"
    (source / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    edit_json(
        source / "tokenizer_config.json",
        lambda x: x.update(auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    )
    edit_json(
        source / "preprocessor_config.json",
        lambda x: x.update(auto_map={"AutoImageProcessor": "evil.Evil"}),
    )
    compare(made, checkpoint)
    assert not ran.exists()


def test_the_first_difference_of_two_documents() -> None:
    one = {"a": [1, {"b": 2}], "c": None}
    assert first_difference(one, json.loads(json.dumps(one))) is None
    assert first_difference({"a": [1, {"b": 3}], "c": None}, one) == ("a[1].b", 3, 2)
    assert first_difference({"a": [1], "c": None}, one) == ("a, length", 1, 2)
    assert first_difference({**one, "d": 4}, one) == ("d", 4, None)
    assert first_difference({"a": {}}, {"a": []}) == ("a", {}, [])


def test_byte_level_tokens_are_compared_too(tmp_path: Path) -> None:
    tokenizer = byte_level(["<video>"])
    source = save_small(tmp_path / "checkpoint", text={"vocab_size": len(tokenizer)})
    edit_config(source, lambda document: document.update(image_token_index=3))
    tokenizer.save_pretrained(source)
    made, checkpoint = make_assets(source, tmp_path)
    edit_json(made / "tokenizer.json", swap_merges)
    failed = [x for x in compare(made, checkpoint).comparisons if not x.passed]
    assert "model.merges[" in failed[0].found
