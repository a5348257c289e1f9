"""Rendering a stranger's chat template: it may not run code, and it may not run for ever or fill the memory.

jinja2's immutable sandbox keeps a template away from Python's internals but sets no bounds. Here each loop pass and
each call is counted, the size of everything that grows is bounded before it is made, and only the filters and methods
that chat templates use are there. The template is rewritten as a syntax tree so that it cannot reach the counters.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgekit.bundle.paths import plain
from edgekit.errors import TokenizerError

Message = Mapping[str, Any]
"""A chat message, for example {"role": "user", "content": "Hi"}."""

MAX_TEMPLATE = 256 << 10
MAX_STEPS = 250_000
MAX_SIZE = 8 << 20
MAX_MADE = 64 << 20
MAX_NODES = 100_000
MAX_SECONDS = 5.0
MAX_TREE = 20_000
MAX_DEPTH = 100
"""Parts of a template's syntax tree, and how deep they nest: jinja2 and Python compile deep trees in cubic time."""
_MAX_NESTING = 64
_NOWHERE = "/dev/null/template"
"""Python looks for the line of a syntax error in the file of that name: there can be none."""
_MAX_INTEGER_BITS = 1024


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words(
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map max min"
    " reject rejectattr replace reverse safe select selectattr sort string title trim unique upper"
)
_TEXT_METHODS = _words(
    "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle isupper"
    " join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split"
    " splitlines startswith strip title upper"
)
_WHOLE = _words("join replace string tojson e escape")
"""Methods and filters that show all of a list, where others copy its elements."""
_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
_VIEWS = (KeysView, ValuesView, ItemsView)
_SIZED = (str, bytes, list, tuple, dict, range, *_VIEWS)
_BUILTIN = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, type(None), range)


class TooMuchError(Exception):
    """The template went past a bound; never leaves this module."""


@dataclass
class Budget:
    """What is left for one rendering."""

    steps: int = MAX_STEPS
    made: int = MAX_MADE
    deadline: float = 0.0

    def step(self) -> str:
        """Count one loop pass or call; returns "" because it stands in the template's output."""
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise TooMuchError("runs for too long")
        return ""

    def make(self, size: int) -> None:
        """Refuse to make a value of `size` characters or elements when it, or all made so far, is too large."""
        self.made -= size
        if size > MAX_SIZE or self.made < 0:
            raise TooMuchError("makes too much text")


def size_of(value: object) -> int:
    """Characters and elements in `value`, shared parts counted each time they are met.

    Raises:
        TooMuchError: more than MAX_SIZE, more than MAX_NODES values in it, or nested deeper than 64.
    """
    total, nodes_left, waiting = 0, MAX_NODES, [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        nodes_left -= 1
        total += 1
        if isinstance(item, (str, bytes, range)):
            total += len(item)
        elif isinstance(item, Namespace):
            waiting.append((item._Namespace__attrs, depth + 1))
        elif isinstance(item, (list, tuple, *_VIEWS)):
            waiting.extend((part, depth + 1) for part in item)
        elif isinstance(item, dict):
            waiting.extend((part, depth + 1) for pair in item.items() for part in pair)
        if total > MAX_SIZE or len(waiting) > nodes_left or depth > _MAX_NESTING:
            raise TooMuchError("makes too much text")
    return total


def _settled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Generators as lists, so that their size is known; the variable `loop` is an iterator too, but stays itself."""
    return tuple(
        list(value) if isinstance(value, Iterator) and not isinstance(value, LoopContext) else value for value in values
    )


def _shallow(value: object) -> int:
    """Characters that a copy of `value` takes, an element as 8 of them; what a list holds is shared, not copied."""
    size_of(value)
    if isinstance(value, (str, bytes)):
        return len(value)
    return 8 * len(value) if isinstance(value, _SIZED) else 1


def _growth(name: str, values: Sequence[object]) -> int:
    """An upper bound of the characters and elements that the method or filter `name` makes of its arguments."""
    size = sum((size_of if name in _WHOLE else _shallow)(value) for value in values)
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(texts) == 3:
        # With keywords the order is unknown, so the worst one counts.
        return size + max(texts[0].count(old) * len(new) for old, new in (texts[1:], texts[:0:-1]))
    if name in ("join", "replace"):
        lengths = sorted((len(value) for value in values if isinstance(value, _SIZED)), reverse=True)
        return size + math.prod(lengths[:2])
    return size


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2 takes its hooks by subclassing only."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    budget: Budget

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, type):  # dict.fromkeys makes a dict that nobody counts
            return False
        if isinstance(obj, _BUILTIN):
            allowed = next((methods for kind, methods in _METHODS.items() if isinstance(obj, kind)), frozenset())
            if attr not in allowed:
                return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        # jinja2 hands out its own str.format without asking is_safe_attribute, and a format can pad without bound.
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            raise SecurityError("str.format is not supported")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(self.budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 as jinja2 has it
        __self.budget.step()
        args = _settled(args)
        owner = getattr(__obj, "__self__", None)
        size = _growth(getattr(__obj, "__name__", ""), (owner, *args, *kwargs.values()))
        if isinstance(owner, _BUILTIN):
            __self.budget.make(size)
        return super().call(__context, __obj, *args, **kwargs)

    def bounded_text(self, value: Any) -> str:
        """`value` as it is put out."""
        if isinstance(value, jinja2.Undefined) and value._undefined_exception is SecurityError:
            value._fail_with_undefined_error()
        self.budget.make(size_of(value))
        return str(value)

    def bounded_join(self, *values: Any) -> str:
        """The operator `~`."""
        return "".join(map(self.bounded_text, values))

    def bounded_copy(self, value: Any) -> Any:
        """The result of a slice."""
        self.budget.make(_shallow(value))
        return value

    def bounded_value(self, value: Any) -> Any:
        """A list, tuple or dict just built, or a condition: nothing that takes for ever to compare or to show."""
        self.budget.step()
        size_of(value)
        return value

    def step(self) -> str:
        """Stands at the head of every loop body."""
        return self.budget.step()


def _check_operation(budget: Budget, operator: str, left: object, right: object) -> None:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        bits = sum(abs(int(v)).bit_length() for v in (left, right) if isinstance(v, int))
        if bits > _MAX_INTEGER_BITS or (operator == "**" and abs(right) > 64):
            raise TooMuchError("computes too large a number")
    elif operator == "*":
        times = [v for v in (left, right) if isinstance(v, int)]
        text = [v for v in (left, right) if not isinstance(v, int)]
        budget.make(max([0, *times]) * sum(_shallow(v) for v in text))
    elif operator == "%":
        raise TooMuchError("formats text with %, which is not supported")
    else:
        budget.make(_shallow(left) + _shallow(right))


class _Bounds(NodeTransformer):
    """Puts the counters into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_hook("step", [], node.lineno)], lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else _hook("bounded_text", [part], node.lineno)
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        return _hook("bounded_join", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        return _hook("bounded_copy", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        node.test = _hook("bounded_value", [node.test], node.lineno)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        return _hook("bounded_value", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        return _hook("bounded_value", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 as jinja2 has it
        self.generic_visit(node)
        return _hook("bounded_value", [node], node.lineno) if node.ctx == "load" else node


def _hook(name: str, args: Sequence[nodes.Node], lineno: int) -> nodes.Call:
    expressions = cast("list[nodes.Expr]", list(args))
    return nodes.Call(nodes.EnvironmentAttribute(name), expressions, [], None, None, lineno=lineno)


def _refuse_large(tree: nodes.Template) -> None:
    """Before anything walks the tree recursively; an elif is as deep as it is late, as Python compiles it."""
    left, waiting = MAX_TREE, [(cast("nodes.Node", tree), 0)]
    while waiting:
        node, depth = waiting.pop()
        left -= 1
        late = len(node.elif_) if isinstance(node, nodes.If) else 0
        if left < 0 or depth + late > MAX_DEPTH:
            raise TooMuchError("is too large or nested too deeply")
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` marks the assistant's words for training; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012 jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded_filter(budget: Budget, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.step()
        args = _settled(args)
        budget.make(_growth(name, (*args, *kwargs.values())))
        return function(*args, **kwargs)

    return bounded


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if isinstance(indent, str) or (indent or 0) > 8 or size_of(value) * (1 + _MAX_NESTING * (indent or 0)) > MAX_MADE:
        raise TooMuchError("makes too much text")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime(now: datetime | None, form: str) -> str:
    if len(form) > 64 or any(letter.isdigit() for letter in form):
        raise TooMuchError("asks for a date in a form that is not supported")
    return (now or datetime.now()).strftime(form)


def _sandbox(now: datetime | None) -> _Sandbox:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    budget = sandbox.budget = Budget(deadline=time.monotonic() + MAX_SECONDS)
    known = {name: sandbox.filters[name] for name in _FILTERS} | {"tojson": _tojson}
    sandbox.filters = {name: _bounded_filter(budget, name, function) for name, function in known.items()}
    for name in ("lipsum", "cycler", "joiner"):
        del sandbox.globals[name]
    sandbox.globals.update(raise_exception=_refuse, strftime_now=functools.partial(_strftime, now))
    return sandbox


def render(template: str, messages: Sequence[Message], *, now: datetime | None = None, **values: object) -> str:
    """The text that a chat template makes of `messages`.

    Args:
        template: the jinja2 source, at most 256 KiB.
        messages: the conversation, passed as `messages`.
        now: the time for `strftime_now`, by default the clock's.
        values: further variables: `add_generation_prompt`, `bos_token`, …

    Raises:
        TokenizerError: the template is broken, unsafe, refuses the messages (`raise_exception`), or goes past a
            bound (250,000 loop passes and calls, 8 Mi characters at once, 64 Mi in all, 5 seconds; docs/bundle.md).
    """
    try:
        if len(template) > MAX_TEMPLATE:
            raise TooMuchError(f"is longer than {MAX_TEMPLATE} characters")
        sandbox = _sandbox(now)
        tree = sandbox.parse(template)
        _refuse_large(tree)
        code = sandbox.compile(_Bounds().visit(tree), filename=_NOWHERE)
        made = sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))
        text = made.render(messages=list(messages), **values)
        text.encode()
    except Exception as error:  # whatever a stranger's template does wrong is the template's fault
        fault = plain(" ".join(str(error).split()) or type(error).__name__)
        raise TokenizerError(
            f"the chat template cannot be used ({fault})",
            expected="a template that renders these messages",
            remedy="mend chat_template in the model's tokenizer files, or give messages that it accepts",
        ) from error
    return text
