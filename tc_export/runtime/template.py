# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's chat template: found, compiled, and rendered as transformers renders it.

Templates are programs of strangers; `template_sandbox` says what they can reach and may cost.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from tc_export.errors import CheckpointError
from tc_export.runtime.template_limits import TemplateLimitError
from tc_export.runtime.template_sandbox import BoundedEnvironment, guarded

SOURCE_CHARACTERS = 200_000
"""Longest template. The longest on the hub are a tenth of it."""

Message = Mapping[str, str | list[dict[str, str]]]
"""One turn: its role, and its content, as text or in parts."""


class ChatTemplate:
    """A compiled template. Threads may share it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile a template; `special_tokens` are the tokens that it may name, by name.

        Raises:
            CheckpointError: it is no template.
            TemplateLimitError: it is too long, or nested too deep.
        """
        if len(source) > SOURCE_CHARACTERS:
            raise TemplateLimitError(
                f"has {len(source)} characters, and at most {SOURCE_CHARACTERS} are read"
            )
        self._special_tokens = dict(special_tokens or {})
        self._environment = BoundedEnvironment()
        self._lock = threading.Lock()
        try:
            tree = guarded(self._environment.parse(source), self._environment)
            code = self._environment.compile(tree)
            self._template = Template.from_code(
                self._environment, code, dict(self._environment.globals)
            )
        except (RecursionError, MemoryError, IndentationError) as error:
            raise TemplateLimitError("is nested too deep") from error
        # Python refuses what Jinja passes on to it in more ways than one.
        except (TemplateError, SyntaxError, ValueError, OverflowError, TypeError) as error:
            raise CheckpointError(
                f"the chat template cannot be compiled: {_reason(error)}",
                hint="check chat_template.jinja, or remove it to use Vicuna's prompt",
            ) from error

    def render(self, messages: list[Message]) -> str:
        """Render a conversation, up to where the answer begins.

        Raises:
            CheckpointError: the template fails on these messages, or refuses them.
            TemplateLimitError: it takes too long, or makes too much.
        """
        with self._lock:
            self._environment.start()
            try:
                return self._template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._special_tokens,
                )
            except TemplateLimitError:
                raise
            except RecursionError as error:
                raise TemplateLimitError("calls itself without end") from error
            except Exception as error:  # whatever a program may raise
                raise CheckpointError(f"the chat template fails: {_reason(error)}") from error


def read_template(folder: Path) -> str | None:
    """Return a folder's chat template: the processor's, or else the tokenizer's; None without one.

    Raises:
        CheckpointError: a file that should hold one cannot be read.
    """
    found = find_template(folder)
    return None if found is None else found[1]


def find_template(folder: Path) -> tuple[Path, str] | None:
    """A folder's chat template, and the file that holds it; see `read_template`."""
    for name in (
        "chat_template.jinja",
        "chat_template.json",
        "processor_config.json",
        "tokenizer_config.json",
    ):
        path = folder / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            template = text if path.suffix == ".jinja" else json.loads(text).get("chat_template")
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no chat template: {error}") from error
        if (found := _default(template)) is not None:
            return path, found
    return None


def _default(template: Any) -> str | None:
    """Return the template itself, or the default one of several."""
    if isinstance(template, list):
        template = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
