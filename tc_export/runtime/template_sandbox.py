# SPDX-License-Identifier: Apache-2.0
"""The Jinja environment that chat templates run in: what they can reach, and what they may cost.

A template is a stranger's program. Jinja's sandbox keeps it from Python, but lets it run for ever
and double a string until memory is gone. So a template is rewritten before it is compiled: every
place where a program can grow or repeat (loops, calls, filters, operators, literals, output) goes
through this module. Two rules hold there:

    no value weighs more than `VALUE_CHARACTERS`, shared parts counted as often as they occur,
    so whatever the template does next with it is over soon;

    all that is made in one rendering weighs at most `ALL_CHARACTERS`, in at most `STEPS` steps
    and `SECONDS` seconds.

What could grow by more than its operands' size in one operation (`*`, `replace`, `join`, widths of
formats) is computed only after its size is known; what cannot be bounded so is refused by name.
This is in the process: a child with limits set by the kernel would hold too, but starting one
costs more than all the rest of a prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg
from jinja2.visitor import NodeTransformer

from tc_export.runtime.template_limits import (
    ALL_CHARACTERS,
    SECONDS,
    STEPS,
    TemplateLimitError,
    check_characters,
    check_format,
    check_join,
    check_power,
    check_product,
    check_replace,
    weigh,
)

_FILTER_NUMBER = 10_000
_JSON_INDENT = 8

# Methods that templates may call: none makes more than its operands, but for those that are
# measured first.
_TEXT_METHODS = """
    strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith lower upper
    title capitalize swapcase casefold find rfind index rindex count replace join format format_map
    removeprefix removesuffix isalnum isalpha isascii isdecimal isdigit isidentifier islower
    isnumeric isprintable isspace istitle isupper
"""
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
# Filters that take longer than their text is long, or whose result is another one every time.
_REFUSED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap")
# Filters whose result is as large as a number says.
_SIZED_FILTERS = ("batch", "center", "round", "slice")
_FILTER_ARGUMENTS = {"replace": ("old", "new"), "join": ("d",), "indent": ("width",)}

# Names of our own filters, which no template can write.
_EACH, _MADE, _JOINED, _SAID = "each item", "made value", "joined text", "said text"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up, within bounds. Renders one text at a time."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # Nothing is computed while a template is compiled: there, nobody counts.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, _GenerationTag],
        )
        self.start()
        self.filters["tojson"] = _to_json
        self.filters = {name: _bounded(name, call) for name, call in self.filters.items()}
        self.filters |= {_EACH: _each, _MADE: _made, _JOINED: _joined, _SAID: _said}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def start(self) -> None:
        """Give the next rendering its whole budget."""
        self._steps_left = STEPS
        self._characters_left = ALL_CHARACTERS
        self._deadline_s = time.monotonic() + SECONDS

    def step(self) -> None:
        """Count one step.

        Raises:
            TemplateLimitError: it is one too many, or time is up.
        """
        self._steps_left -= 1
        if self._steps_left < 0:
            raise TemplateLimitError(f"takes more than {STEPS} steps")
        if time.monotonic() > self._deadline_s:
            raise TemplateLimitError(f"takes more than {SECONDS:g} seconds")

    def checked(self, value: Any) -> Any:
        """Count a value that the template has made or is about to use, and return it.

        Raises:
            TemplateLimitError: it is too large, or all of them are.
        """
        self.step()
        self._characters_left -= weigh(value)
        if self._characters_left < 0:
            raise TemplateLimitError(f"makes more than {ALL_CHARACTERS} characters in all")
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute left operator right, where the result is small enough."""
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            check_format(left, right)
        return self.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a function that templates have, or a method of text or a collection."""
        method = getattr(called, "__wrapped__", called)  # str.format is wrapped by the sandbox
        owner = getattr(method, "__self__", None)
        args = tuple(self.checked(_listed(value)) for value in args)
        kwargs = {name: self.checked(_listed(value)) for name, value in kwargs.items()}
        if type(owner).__module__ in ("builtins", "markupsafe") and owner is not None:
            _check_method(self.checked(owner), method.__name__, args, kwargs)
        return self.checked(super().call(context, called, *args, **kwargs))


def guarded(tree: nodes.Template, environment: BoundedEnvironment) -> nodes.Template:
    """Rewrite a parsed template so that it counts what it does."""
    _Guard().visit(tree)
    tree.set_environment(environment)
    return tree


class _Guard(NodeTransformer):
    """Puts our filters around loops' sources, literals, joined text and output."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _EACH)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _filtered(self.generic_visit(node), _MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _filtered(self.generic_visit(node), _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(child, _SAID) for child in node.nodes]
        return node


class _GenerationTag(Extension):
    """`{% generation %}`, by which training knows the assistant's words: its body, as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` in templates: makes dictionaries, and is no Python class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in templates. Its text does not show its contents, which could be anything."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@pass_context
def _each(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    environment = _environment(context)
    for value in values:
        environment.step()
        yield value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _environment(context).checked(value)


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    environment = _environment(context)
    return "".join(str(value) for value in environment.checked(values))


@pass_context
def _said(context: Context, value: Any) -> Any:
    return _environment(context).checked(value)


def _environment(context: Context) -> BoundedEnvironment:
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    return environment


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with what it is given and what it gives counted."""
    wants = _PassArg.from_obj(filter_)

    @pass_context
    def bounded(context: Context, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        if name in _REFUSED_FILTERS:
            raise SecurityError(f"the filter {name} is not for chat templates")
        environment = _environment(context)
        value = environment.checked(_listed(value))
        for argument in (*args, *kwargs.values()):
            environment.checked(argument)
        _check_filter(name, value, args, kwargs)
        first = {
            _PassArg.context: (context,),
            _PassArg.eval_context: (context.eval_ctx,),
            _PassArg.environment: (environment,),
            None: (),
        }[wants]
        return environment.checked(filter_(*first, value, *args, **kwargs))

    return bounded


def _listed(value: Any) -> Any:
    """What an iterator, a view or a range gives, so that it can be weighed; all else as it is."""
    if hasattr(value, "__next__") or isinstance(value, (KeysView, ValuesView, ItemsView, range)):
        return list(value)
    return value


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
    if kind is None or name not in _METHODS[kind]:
        raise SecurityError(f"{type(owner).__name__}.{name} is not for chat templates")
    if name in ("format", "format_map"):
        check_format(owner, [*args, kwargs])
    elif name == "replace" and len(args) >= 2:
        check_replace(owner, *args[:2])
    elif name == "join" and args:
        check_join(owner, args[0])


def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = dict(zip(_FILTER_ARGUMENTS.get(name, ()), args, strict=False)) | kwargs
    if name == "format":
        check_format(str(value), [*args, kwargs])
    elif name == "replace":
        check_replace(str(value), given.get("old", ""), given.get("new", ""))
    elif name == "join":
        check_join(given.get("d", ""), value)
    elif name == "indent":
        width = given.get("width", 4)
        columns = len(width) if isinstance(width, str) else int(width)
        check_characters((str(value).count("\n") + 1) * columns)
    elif name in _SIZED_FILTERS:
        for number in (*args, *kwargs.values()):
            if isinstance(number, int) and abs(number) > _FILTER_NUMBER:
                raise TemplateLimitError(f"gives the filter {name} the number {number}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as transformers has it: without HTML's escapes."""
    columns = len(indent) if isinstance(indent, str) else indent or 0
    if columns > _JSON_INDENT or sum(map(len, separators or ())) > _JSON_INDENT:
        raise TemplateLimitError(f"writes JSON with more than {_JSON_INDENT} spaces of indent")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
