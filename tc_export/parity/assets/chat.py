# SPDX-License-Identifier: Apache-2.0
"""The chat template, as it renders conversations; and whole prompts, as token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tc_export.errors import CheckpointError, TcExportError
from tc_export.model.positions import Clip
from tc_export.parity.assets.comparison import (
    AssetComparison,
    AssetFindings,
    agreed,
    differs,
    read_by_transformers,
)
from tc_export.runtime.prompt import VISUAL_PLACEHOLDERS, PromptBuilder
from tc_export.runtime.template import ChatTemplate, Message, read_template
from tc_export.runtime.tokenizer import Tokenizer

TEMPLATE, PROMPTS = "chat template", "prompts"

QUESTIONS = (
    "What colour is the ball?",
    "  Wie groß ist die Kiste?\nUnd was steht darauf? ",
    "视频里有什么。🎈",
)
CLIPS = (1, 2)

_REFUSED = "a refusal"


def conversations() -> dict[str, list[Message]]:
    """Turns of every kind that templates know, in both forms that content has."""

    def parts(text: str, *kinds: str) -> list[dict[str, str]]:
        return [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]

    ask, answer, further = QUESTIONS[0], "It is red.", QUESTIONS[2]
    system: Message = {"role": "system", "content": "You are brief."}
    system_parts: Message = {"role": "system", "content": parts("You are brief.")}
    said: Message = {"role": "assistant", "content": answer}
    said_parts: Message = {"role": "assistant", "content": parts(answer)}

    def user(content: str | list[dict[str, str]]) -> Message:
        return {"role": "user", "content": content}

    return {
        "one turn": [user(ask)],
        "one turn, spaces around it": [user(f"  {ask} \n")],
        "one turn, in parts": [user(parts(ask))],
        "an image": [user(parts(ask, "image"))],
        "two images": [user(parts(ask, "image", "image"))],
        "a video": [user(parts(ask, "video"))],
        "two videos": [user(parts(ask, "video", "video"))],
        "an image and a video": [user(parts(ask, "image", "video"))],
        "a placeholder in the text": [user(f"<image>\n{ask}")],
        "two turns": [user(ask), said, user(further)],
        "two turns, a video in the first": [
            user(parts(ask, "video")),
            said_parts,
            user(parts(further)),
        ],
        "two turns, an image in each": [
            user(parts(ask, "image")),
            said_parts,
            user(parts(further, "image")),
        ],
        "a system's turn": [system, user(ask)],
        "a system's turn, in parts": [system_parts, user(parts(ask, "image"))],
    }


def read_theirs(checkpoint: Path, theirs: Any) -> str | None:
    """The template that transformers uses: the processor's, or else the tokenizer's.

    Raises:
        CannotBeReadError: transformers cannot read it.
    """
    from transformers.processing_utils import ProcessorMixin

    def of_processor() -> Any:
        values, _ = ProcessorMixin.get_processor_dict(str(checkpoint), local_files_only=True)
        return values.get("chat_template")

    found = read_by_transformers(TEMPLATE, of_processor)
    found = theirs.chat_template if found is None else found
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def compare_chat(bundle: Path, theirs: Any, template: str | None) -> AssetFindings:
    """Compare what the bundle renders, and its prompts, with what transformers gives.

    `theirs` is transformers' tokenizer of the checkpoint, and `template` the one that it renders.
    """
    try:
        tokenizer = Tokenizer.load(bundle)
        ours = read_template(bundle)
    except CheckpointError as error:
        return AssetFindings([differs(TEMPLATE, str(error), "a template")])
    if ours is None or template is None:
        if ours is not template:
            return AssetFindings([differs(TEMPLATE, _named(ours), _named(template))])
        findings = AssetFindings([agreed(TEMPLATE, _named(None))])
    else:
        findings = AssetFindings([_compare_renderings(ours, tokenizer, theirs, template)])
    findings.extend(_compare_prompts(bundle, theirs, template))
    return findings


def _named(template: str | None) -> str:
    return "none: Vicuna's prompt" if template is None else f"a template: {template!r}"


def _compare_renderings(
    ours: str, tokenizer: Tokenizer, theirs: Any, template: str
) -> AssetComparison:
    try:
        compiled = ChatTemplate(ours, tokenizer.special_tokens)
    except CheckpointError as error:
        return differs(TEMPLATE, str(error), _named(template))
    refused = 0
    for name, messages in conversations().items():
        # A template may name the time: what differs once may have been a second apart.
        for attempt in range(2):
            found = _rendered(compiled, messages)
            expected = render_theirs(theirs, template, messages)
            if found == expected:
                break
            if attempt:
                return _difference(name, found, expected)
        refused += found is None
    note = f"{refused} of them refused by both" if refused else ""
    return agreed(TEMPLATE, f"{len(conversations())} conversations", note)


def _difference(name: str, found: str | None, expected: str | None) -> AssetComparison:
    """Both renderings of a conversation from shortly before the place where they part."""
    note = f"rendering of {name}"
    if found is None or expected is None:
        return differs(TEMPLATE, found or _REFUSED, expected or _REFUSED, note)
    same = next(
        (i for i, (x, y) in enumerate(zip(found, expected, strict=False)) if x != y),
        min(len(found), len(expected)),
    )
    start = max(0, same - 20)
    note += f", from character {start} on"
    return differs(TEMPLATE, repr(found[start:]), repr(expected[start:]), note)


def _rendered(template: ChatTemplate, messages: list[Message]) -> str | None:
    """Our rendering; None where the template refuses the conversation."""
    try:
        return template.render(messages)
    except CheckpointError:
        return None


def render_theirs(theirs: Any, template: str, messages: Sequence[Message]) -> str | None:
    """transformers' rendering; None where the template refuses the conversation."""
    try:
        text: str = theirs.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # whatever a program may raise
        return None
    return text


def _compare_prompts(bundle: Path, theirs: Any, template: str | None) -> AssetFindings:
    added = theirs.get_added_vocab()
    placeholders = [name for name in VISUAL_PLACEHOLDERS if name in added]
    if not placeholders:
        return AssetFindings(
            notes=[
                f"{PROMPTS}: the vocabulary has neither {' nor '.join(VISUAL_PLACEHOLDERS)}, so "
                "transformers makes no prompt with a clip in it"
            ]
        )
    try:
        builder = PromptBuilder.load(bundle)
    except CheckpointError as error:
        return AssetFindings([differs(PROMPTS, str(error), "a prompt")])
    visual = {added[name] for name in placeholders}
    for question in QUESTIONS:
        for clips in CLIPS:
            found = _our_ids(builder, question, clips)
            forms = _forms(template, theirs, question, clips, placeholders[0])
            expected = next((x for x in _in_ids(forms, theirs, visual) if x.count(-1) == clips), [])
            if found != expected:
                note = f"ids of {question!r} with clips: {clips}; -1 is a clip"
                return AssetFindings([differs(PROMPTS, found, expected, note)])
    count = len(QUESTIONS) * len(CLIPS)
    return AssetFindings([agreed(PROMPTS, f"{count} prompts", "with one clip and two")])


def _our_ids(builder: PromptBuilder, question: str, clips: int) -> list[int] | str:
    """A prompt's token ids, with -1 in the place of a clip; or why there is none."""
    try:
        pieces = builder.build(question, [Clip(1, 1)] * clips).pieces
    except TcExportError as error:
        return str(error)
    return [x for piece in pieces for x in ([-1] if isinstance(piece, Clip) else piece)]


def _forms(
    template: str | None, theirs: Any, question: str, clips: int, placeholder: str
) -> Iterator[str | None]:
    """A user's turn with clips, in the order in which a template's forms are tried."""
    lines = f"{placeholder}\n" * clips
    if template is None:
        yield f"USER: {lines}{question} ASSISTANT:"
        return
    text = {"type": "text", "text": question}
    for content in ([{"type": "video"}] * clips + [text], [{"type": "image"}] * clips + [text]):
        yield render_theirs(theirs, template, [{"role": "user", "content": content}])
    yield render_theirs(theirs, template, [{"role": "user", "content": lines + question}])


def _in_ids(forms: Iterator[str | None], theirs: Any, visual: set[int]) -> Iterator[list[int]]:
    """Each form's token ids, with -1 in the place of a clip; one first token, as processors do."""
    for text in forms:
        if text is not None:
            begun = theirs.bos_token is not None and text.startswith(theirs.bos_token)
            ids = theirs(text, add_special_tokens=not begun, truncation=False, padding=False)
            yield [-1 if id_ in visual else id_ for id_ in ids["input_ids"]]
