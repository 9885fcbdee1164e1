# SPDX-License-Identifier: Apache-2.0
"""Prompts against transformers' own tokenisation, placeholders in questions, and streamed text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tc_export.config import TemporalConfig
from tc_export.errors import CheckpointError, UsageError
from tc_export.model.positions import Clip, Text, lay_out
from tc_export.runtime.prompt import Prompt, PromptBuilder, TextStream, shared_tokens
from tests.runtime.tokenizers_for_tests import as_runtime, byte_level, sentencepiece_like

CLIP = Clip(frames=2, tokens_per_frame=3)
QUESTION = "What colour is the ball?"
VISUAL = 9999

# As transformers' conversion scripts write them for LLaVA 1.5 and LLaVA-NeXT-Video.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_VIDEO = LLAVA.replace(
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}",
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] | trim }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + LLAVA

KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str | None, str]] = {
    "llava": (
        lambda: sentencepiece_like(["<image>"]),
        LLAVA,
        f"USER: <image>\n{QUESTION} ASSISTANT:",
    ),
    "llava video": (
        lambda: sentencepiece_like(["<image>", "<video>"], legacy=False),
        LLAVA_VIDEO,
        f"USER: <video>\n{QUESTION} ASSISTANT:",
    ),
    "text-only chatml": (
        lambda: byte_level(["<video>"]),
        CHATML,
        f"<|im_start|>user\n<video>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "vicuna": (
        lambda: sentencepiece_like(["<video>"]),
        None,
        f"USER: <video>\n{QUESTION} ASSISTANT:",
    ),
    "vicuna, image only": (
        lambda: sentencepiece_like(["<image>"]),
        None,
        f"USER: <image>\n{QUESTION} ASSISTANT:",
    ),
    "bos in the template": (
        lambda: sentencepiece_like(["<image>"]),
        WITH_BOS,
        f"<s>USER: <image>\n{QUESTION} ASSISTANT:",
    ),
}


def text_ids(prompt: Prompt) -> list[int]:
    return [id_ for piece in prompt.pieces if not isinstance(piece, Clip) for id_ in piece]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_tokenisation_of_the_expected_text(kind: str) -> None:
    make, template, text = KINDS[kind]
    tokenizer = make()
    prompt = PromptBuilder(as_runtime(tokenizer), template).build(QUESTION, [CLIP])
    placeholder = tokenizer.convert_tokens_to_ids("<video>" if "<video>" in text else "<image>")
    expected = tokenizer(text, add_special_tokens=not text.startswith("<s>"))["input_ids"]
    at = expected.index(placeholder)
    assert prompt.pieces == (tuple(expected[:at]), CLIP, tuple(expected[at + 1 :]))
    ids = prompt.token_ids(VISUAL).tolist()
    assert ids == expected[:at] + [VISUAL] * 6 + expected[at + 1 :]
    assert ids.count(tokenizer.bos_token_id) == int(tokenizer.bos_token_id is not None)
    assert prompt.length == len(ids)
    layout, _ = lay_out(prompt.segments, TemporalConfig())
    np.testing.assert_array_equal(layout.frame_ids >= 0, np.array(ids) == VISUAL)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_before_the_clip_whatever_is_asked(kind: str) -> None:
    make, template, _ = KINDS[kind]
    builder = PromptBuilder(as_runtime(make()), template)
    for question in (QUESTION, "<video> or <image>?", "s"):
        prompt = builder.build(question, [CLIP])
        before, after = prompt.around_clip()
        assert before == builder.head()
        assert prompt.pieces == (before, CLIP, after)


def test_a_template_with_the_question_first_has_no_head() -> None:
    template = "{{ messages[0]['content'][1]['text'] + ' <video> ASSISTANT:' }}"
    builder = PromptBuilder(as_runtime(byte_level(["<video>"])), template)
    assert builder.build(QUESTION, [CLIP]).pieces[1] == CLIP
    with pytest.raises(UsageError, match="places the question before the video") as caught:
        builder.head()
    assert "answer_many" in str(caught.value.hint)


def test_a_clip_at_either_end() -> None:
    assert Prompt(pieces=(CLIP, (1, 2))).around_clip() == ((), (1, 2))
    assert Prompt(pieces=((1, 2), CLIP)).around_clip() == ((1, 2), ())


def test_a_vocabulary_without_placeholders_is_split_as_original_llava_does() -> None:
    """`tokenizer_image_token` of the LLaVA repository: each part alone, one <s> in all."""
    tokenizer = sentencepiece_like()
    before, after = (
        tokenizer(part)["input_ids"] for part in ("USER: ", f"\n{QUESTION} ASSISTANT:")
    )
    assert before[0] == after[0] == tokenizer.bos_token_id
    prompt = PromptBuilder(as_runtime(tokenizer), None).build(QUESTION, [CLIP])
    assert prompt.pieces == (tuple(before), CLIP, tuple(after[1:]))


@pytest.mark.parametrize("kind", [*KINDS, "split"])
@pytest.mark.parametrize("typed", ["<video>", "<image>", "</s>", "<|im_end|>", "<<video>video>"])
def test_control_tokens_in_the_question_stay_text(kind: str, typed: str) -> None:
    make, template, _ = KINDS.get(kind, (sentencepiece_like, None, ""))
    tokenizer = make()
    builder = PromptBuilder(as_runtime(tokenizer), template)
    plain = builder.build("Is  here?", [CLIP])
    prompt = builder.build(f"Is {typed} here?", [CLIP])
    assert [type(piece) for piece in prompt.pieces] == [type(piece) for piece in plain.pieces]
    control = set(tokenizer.get_added_vocab().values())
    assert [id_ for id_ in text_ids(prompt) if id_ in control] == [
        id_ for id_ in text_ids(plain) if id_ in control
    ]
    assert f"Is {typed} here?" in tokenizer.decode(text_ids(prompt))


def test_the_mark_that_breaks_control_tokens_cannot_be_typed() -> None:
    builder = PromptBuilder(as_runtime(sentencepiece_like(["<video>"])), None)
    assert builder.build("\ue000Is\ue000 it?", [CLIP]) == builder.build("Is it?", [CLIP])
    prompt = builder.build("Is <\ue000video> it?", [CLIP])
    assert len(prompt.segments) == 3


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["<video>", "<image>", "</s>", ""]), st.text())
def test_no_question_changes_what_surrounds_it(before: str, typed: str, after: str) -> None:
    question = f"a{before}{typed}{after}"
    builder, control = _BUILDER_AND_CONTROL
    prompt = builder.build(question, [CLIP])
    first, clip, last = prompt.pieces
    assert clip == CLIP
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert first == _PLAIN_START
    assert not control & set(last)


_BUILDER = PromptBuilder(as_runtime(sentencepiece_like(["<video>", "<image>"])), LLAVA_VIDEO)
_BUILDER_AND_CONTROL = (
    _BUILDER,
    set(_BUILDER.tokenizer.added_tokens.values()) - {_BUILDER.tokenizer.token_id("<unk>")},
)
_PLAIN_START = _BUILDER.build("a", [CLIP]).pieces[0]


@pytest.mark.parametrize("kind", [*KINDS, "split"])
def test_any_number_of_clips(kind: str) -> None:
    make, template, _ = KINDS.get(kind, (sentencepiece_like, None, ""))
    builder = PromptBuilder(as_runtime(make()), template)
    clips = [Clip(frames, 4) for frames in (1, 7, 2)]
    for count in range(4):
        prompt = builder.build(QUESTION, clips[:count])
        assert [piece for piece in prompt.pieces if isinstance(piece, Clip)] == clips[:count]
        assert prompt.length == len(text_ids(prompt)) + sum(c.length for c in clips[:count])
        assert all(segment.length for segment in prompt.segments)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    with pytest.raises(UsageError, match="the question is empty"):
        _BUILDER.build(question, [CLIP])


def test_a_prompt_longer_than_the_context_is_refused_with_numbers() -> None:
    prompt = Prompt(pieces=((1, 2, 3), CLIP, (4, 5)))
    assert prompt.segments == (Text(3), CLIP, Text(2))
    prompt.check_fits(max_length=20, new_tokens=9)
    with pytest.raises(
        UsageError, match=r"11 tokens \(6 of the video, 5 of text\) .* 10: 21 .* holds 20"
    ):
        prompt.check_fits(max_length=20, new_tokens=10)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['role'] }}", "{{ raise_exception('no') }}", "{{ '<video>' }} and no question"],
)
def test_a_template_without_a_place_for_clip_and_question_is_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="no place for a clip"):
        PromptBuilder(as_runtime(sentencepiece_like(["<video>"])), template)


def prompt_of(*pieces: tuple[int, ...] | Clip) -> Prompt:
    return Prompt(pieces=pieces)


def test_the_first_tokens_of_a_prompt() -> None:
    prompt = prompt_of((1, 2), CLIP, (3, 4))
    assert prompt.first(0) == prompt_of()
    assert prompt.first(1) == prompt_of((1,))
    assert prompt.first(2) == prompt_of((1, 2))
    assert prompt.first(8) == prompt_of((1, 2), CLIP)
    assert prompt.first(9) == prompt_of((1, 2), CLIP, (3,))
    assert prompt.first(10) == prompt


def test_prompts_share_what_they_begin_with() -> None:
    begin = ((1, 2), CLIP)
    asked = [prompt_of(*begin, end) for end in ((3, 4, 5), (3, 4, 6, 7), (3, 4, 5, 7))]
    assert shared_tokens(asked) == 2 + CLIP.length + 2
    assert shared_tokens([asked[0], asked[0]]) == asked[0].length - 1, "each keeps a token"
    assert shared_tokens([asked[0], asked[2]]) == asked[0].length - 1
    assert shared_tokens([prompt_of(*begin, (3,)), prompt_of(*begin, (4, 3))]) == 2 + CLIP.length


def test_prompts_whose_clip_comes_after_the_question_share_nothing() -> None:
    assert shared_tokens([prompt_of((1, 2), CLIP, (3,)), prompt_of((1, 4), CLIP, (3,))]) == 0
    assert shared_tokens([prompt_of((1, 2), CLIP, (3,)), prompt_of((1, 2, 4), CLIP, (3,))]) == 0
    assert shared_tokens([prompt_of((1, 2), CLIP)] * 2) == 0, "no token is left after the clip"


def test_a_prompt_may_begin_with_a_clip() -> None:
    builder = PromptBuilder(as_runtime(byte_level(["<video>"])), "{{ messages[0]['content'] }}")
    clip, text = builder.build(QUESTION, [CLIP]).segments
    assert clip == CLIP
    assert text == Text(len(builder.tokenizer.encode(f"\n{QUESTION}", special=True)))


@pytest.mark.parametrize(
    "place", ["jinja", "chat_template.json", "processor_config.json", "tokenizer", "none"]
)
def test_templates_are_found_where_each_version_of_transformers_puts_them(
    place: str, tmp_path: Path
) -> None:
    tokenizer = sentencepiece_like(["<image>"])
    if place == "tokenizer":
        tokenizer.chat_template = LLAVA.replace("ASSISTANT", "tokenizer")
    elif place != "none":
        tokenizer.chat_template = "the processor's goes first"
    tokenizer.save_pretrained(tmp_path)
    if place not in ("tokenizer", "none"):
        template = LLAVA.replace("ASSISTANT", place)
        if place == "jinja":
            (tmp_path / "chat_template.jinja").write_text(template)
        else:
            (tmp_path / "chat_template.jinja").unlink()
            (tmp_path / place).write_text(json.dumps({"chat_template": template}))
    builder = PromptBuilder.load(tmp_path)
    end = "ASSISTANT:" if place == "none" else f"{place}:"
    decoded = builder.tokenizer.decode(text_ids(builder.build(QUESTION, [CLIP])), special=True)
    assert decoded.endswith(f"{QUESTION} {end}")


def _tokenizer_folder(folder: Path) -> None:
    sentencepiece_like(["<video>"]).save_pretrained(folder)


def _truncate(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def _remote_code(folder: Path) -> None:
    """A tokenizer that would run the folder's own code if it were let."""
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["own.Own", None]},
    }
    path.write_text(json.dumps(values))
    (folder / "own.py").write_text("raise SystemExit('the checkpoint ran its code')")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _truncate(folder / "tokenizer.json"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "is missing"),
        (lambda folder: (folder / "chat_template.json").write_text("{"), "chat_template.json"),
        (lambda folder: (folder / "chat_template.json").write_text("[]"), "chat_template.json"),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe"),
            "chat_template.jinja|cannot be read",
        ),
        (_remote_code, "is missing"),
    ],
)
def test_damaged_tokenizers_are_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    _tokenizer_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        PromptBuilder.load(tmp_path)


def test_a_missing_folder_is_never_looked_up_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        PromptBuilder.load(tmp_path / "llava-hf" / "llava-1.5-7b-hf")


TOKENIZERS = {
    "sentencepiece": sentencepiece_like(["<video>"]),
    "sentencepiece, not legacy": sentencepiece_like(["<video>"], legacy=False),
    "bytes": byte_level(["<video>"]),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_streamed_text_is_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(as_runtime(tokenizer))
    parts = [stream.push(id_) for id_ in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(parts) + stream.finish() == whole.rstrip("\ufffd")
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_come_out_as_they_are_made(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    stream = TextStream(as_runtime(tokenizer))
    parts = [stream.push(id_) for id_ in tokenizer("A red ball 🎈 moves</s>")["input_ids"]]
    assert sum(bool(part) for part in parts) >= 5
    assert "🎈" in "".join(parts)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_half_a_character_is_never_given(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer("ball 🎈", add_special_tokens=False)["input_ids"]
    stream = TextStream(as_runtime(tokenizer))
    assert "".join(stream.push(id_) for id_ in ids[:-1]) == "ball "
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_can_be_streamed(kind: str, data: st.DataObject) -> None:
    """A model may say anything, also bytes that are no characters."""
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=25))
    stream = TextStream(as_runtime(tokenizer))
    streamed = "".join(stream.push(id_) for id_ in ids) + stream.finish()
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    # Decoding at once, SentencePiece's decoder spoils the good bytes beside a bad one.
    assert streamed == whole.rstrip("\ufffd") or (kind != "bytes" and "\ufffd" in whole)
