# SPDX-License-Identifier: Apache-2.0
"""Chat templates: rendered as transformers renders them, and bounded in what they may cost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tc_export.errors import CheckpointError
from tc_export.runtime.prompt import PromptBuilder
from tc_export.runtime.template import FILE_BYTES, ChatTemplate, read_template
from tc_export.runtime.template_limits import TemplateLimitError
from tests.runtime.hostile_templates import HOSTILE
from tests.runtime.test_prompt import CHATML, LLAVA, LLAVA_VIDEO, WITH_BOS
from tests.runtime.tokenizers_for_tests import as_runtime, sentencepiece_like

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARTS = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What is <b>it</b> & why?"}]
MESSAGES: list[Any] = [
    [{"role": "user", "content": "  What is it?\n"}],
    [{"role": "user", "content": PARTS}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": "A ball."},
        {"role": "user", "content": "Which colour? été 🎈"},
    ],
]

# What templates on the hub are made of, a piece each.
SAME = {
    "llava": LLAVA,
    "llava video": LLAVA_VIDEO,
    "chatml": CHATML,
    "bos": WITH_BOS,
    "blocks are trimmed": "  {% for m in messages %}\n    {{ m.role }}\n  {% endfor %}\nend\n",
    "loop": "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}"
    "{% if not loop.last %}, {{ loop.nextitem.role }}{% endif %}{% else %}none{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "condition": "{% for m in messages if m.role != 'system' %}{{ m.role }}{% endfor %}",
    "recursion": "{% for x in [1, [2, [3]]] recursive %}"
    "{{ loop(x) if x is sequence else x }}{% endfor %}",
    "namespace": "{% set ns = namespace(text='', first=true) %}{% for m in messages %}"
    "{% set ns.text = ns.text ~ m.role ~ loop.index %}{% set ns.first = false %}{% endfor %}"
    "{{ ns.text }}{{ ns.first }}",
    "macro": "{% macro say(m, end='.') %}[{{ m.role }}{{ end }}{{ caller() if caller }}]"
    "{% endmacro %}{% for m in messages %}{{ say(m, end='!') }}{% call say(m) %}more{% endcall %}"
    "{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=4) }}"
    "{{ {'b': [1, 2.5, none, true], 'a': 'é<&>'} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "text": "{% for m in messages %}{% if m.content is string %}"
    "{{ m.content.strip().split(' ')[0] }}"
    "{{ m.content[1:-1].upper() + '|' * 3 }}{{ m.content | replace('i', 'III') | trim | title }}"
    "{{ m.content.replace('What', 'Who') if 'What' in m.content }}"
    "{{ m['content'].startswith('B') }}{{ '-'.join(m.content.split()) }}{% endif %}{% endfor %}",
    "lists": "{{ messages | map(attribute='role') | join(', ') }}{{ (messages | last).role }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages[1:] | length }}"
    "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}"
    "{{ [1, 3, 2] | sort | reverse | list }}{{ range(3) | list }}{{ [1, 2] + [3] }}{{ (1, 2) }}",
    "dictionaries": "{% set d = dict(a=1, b='x') %}{% for k, v in d.items() %}{{ k }}={{ v }};"
    "{% endfor %}{{ d | items | list }}{{ d.keys() | join('+') }}"
    "{{ d.get('c', 'no') }}{{ d | dictsort }}",
    "numbers": "{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 1 + 2 * 3 - 4 / 8 }}{{ -3 | abs }}"
    "{{ 3.14159 | round(2) }}{{ '12' | int + 1 }}{{ '%05.1f and %s' | format(2.25, 'x') }}"
    "{{ '{:>8}|{}'.format('a', 1) }}{{ '%d%%' % 5 }}",
    "set block": "{% set text %}<{{ messages[0].role }}>{% endset %}{{ text * 2 }}",
    "filter block": "{% filter upper %}abc{{ messages[0].role }}{% endfilter %}",
    "generation": "{% for m in messages %}"
    "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ nothing | default('x') }}"
    "{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}",
    "escapes": "{{ '<&>' | e }}{{ ('<' | safe) ~ '>' }}{{ '<' | escape + '&' }}",
    "conditions": "{{ 'a' if messages | length > 1 else 'b' }}{{ 1 in [1, 2] and not false }}",
    "cycle": "{% for m in messages %}{{ loop.cycle('odd', 'even') }}{% endfor %}"
    "{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "raw and comments": "{# no #}{% raw %}{{ x }}{% endraw %}{{- ' a' -}}  {{ 'b' }}",
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("messages", MESSAGES, ids=["text", "parts", "turns"])
def test_renders_what_transformers_renders(name: str, messages: list[Any]) -> None:
    def theirs() -> str:
        rendered, _ = render_jinja_template(
            [messages], chat_template=SAME[name], add_generation_prompt=True, **SPECIAL
        )
        return str(rendered[0])

    def ours() -> str:
        return ChatTemplate(SAME[name], SPECIAL).render(messages)

    try:
        expected = theirs()
    except Exception:  # a template for text, given parts, or the reverse
        with pytest.raises(CheckpointError, match="the chat template fails"):
            ours()
    else:
        assert ours() == expected


def test_most_pieces_can_be_rendered() -> None:
    """So that the test above does not compare failures alone."""
    for name, source in SAME.items():
        assert any(_renders(source, messages) for messages in MESSAGES), name


def _renders(source: str, messages: list[Any]) -> bool:
    try:
        ChatTemplate(source, SPECIAL).render(messages)
    except CheckpointError:
        return False
    return True


REFUSED = {
    "wide text": "{{ 'a'.ljust(1000000000) }}",
    "zeros": "{{ 'a'.zfill(1000000000) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "wrapped text": "{{ 'a' | wordwrap(1) }}",
    "chance": "{{ [1, 2] | random }}",
    "prose": "{{ lipsum(1000000) }}",
    "a large range": "{{ range(10**9) }}",
    "Python": "{{ ''.__class__.__mro__ }}",
    "Python, by a filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
    "a namespace's inside": "{% set n = namespace() %}{% set n._x = 1 %}",
    "changes": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "5,000 digits": "{{ " + "9" * 5000 + " }}",
    "a syntax error": "{% if %}",
    "a filter that does not exist": "{{ 'a' | shout }}",
    "division by zero": "{{ 1 / 0 }}",
    "its own refusal": "{{ raise_exception('only text, please') }}",
}
# A test in its own process: what must not take memory may not take it from here.
RENDER = """
import json, resource, sys, time
from tc_export.errors import CheckpointError
from tc_export.runtime.prompt import PromptBuilder
from tc_export.runtime.template import ChatTemplate
for name, source in json.load(sys.stdin).items():
    start = time.process_time()
    try:
        ChatTemplate(source).render([{"role": "user", "content": "What?"}])
        said = "rendered"
    except CheckpointError as error:
        said = f"{type(error).__name__}: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([name, said, time.process_time() - start, peak]), flush=True)
"""


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def render_apart(templates: dict[str, str]) -> dict[str, tuple[str, float, int]]:
    """Each template's error, the CPU seconds it took, and the most memory so far in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        input=json.dumps(templates),
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        preexec_fn=_limit_memory,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (said, seconds, peak) for name, said, seconds, peak in rows}


def test_no_template_takes_memory_or_time() -> None:
    results = render_apart(HOSTILE)
    for name, (said, seconds, peak) in results.items():
        assert said.startswith("TemplateLimitError: the chat template "), (name, said)
        # The limit is 5 s on a clock that goes on while others compute; ten times that is a hang.
        assert seconds < 50, name
        assert peak < 1.5e9, name
    assert results.keys() == HOSTILE.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_for_templates_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template"):
        ChatTemplate(REFUSED[name]).render([{"role": "user", "content": "What?"}])


def test_a_template_says_why_it_refuses() -> None:
    with pytest.raises(CheckpointError, match="only text, please"):
        ChatTemplate(REFUSED["its own refusal"]).render([{"role": "user", "content": "What?"}])


def test_every_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}")
    for _ in range(5):
        assert template.render([{"role": "user", "content": "x" * 900_000}]) == "x" * 900_000


def test_a_limit_is_no_form_that_is_tried_next() -> None:
    with pytest.raises(TemplateLimitError, match="4000000 characters"):
        PromptBuilder(as_runtime(sentencepiece_like(["<video>"])), HOSTILE["doubling with +"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tools", "template": "b"},
                        {"name": "default", "template": "a"},
                    ]
                }
            },
            "a",
        ),
        ({"processor_config.json": {"chat_template": {"default": "a", "tools": "b"}}}, "a"),
        (
            {
                "processor_config.json": {"chat_template": {"tools": "b"}},
                "tokenizer_config.json": {"chat_template": "a"},
            },
            "a",
        ),
        ({"chat_template.json": {"chat_template": "a"}, "chat_template.jinja": "first"}, "first"),
    ],
)
def test_where_templates_are_read(
    files: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    assert read_template(tmp_path) == expected


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_huge_file_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match=rf"{name} has {FILE_BYTES + 1} bytes"):
        read_template(tmp_path)
