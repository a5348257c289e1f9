"""Ways out of jinja2's sandbox and ways to keep it busy, beyond those of test_chat_template.py."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from edgekit.bundle.template import render
from edgekit.errors import TokenizerError

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]


def refused(template: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        render(template, CHAT, add_generation_prompt=True, bos_token="<s>")
    assert caught.value.sentence().isprintable()


DUNDERS = (
    "__class__",
    "__mro__",
    "__subclasses__",
    "__globals__",
    "__builtins__",
    "__init__",
    "__dict__",
    "__reduce__",
)
PLACES = (
    "messages", "messages[0]", "messages[0].content", "1", "1.5", "true", "none", "range(3)", "range", "dict",
    "namespace()", "namespace", "raise_exception", "strftime_now", "self", "loop", "caller", "x", "(1, 2)", "[1]",
    "{'a': 1}", "f", "messages.items", "'a'.join", "messages|list", "messages|map('upper')",
    "('a'|safe)",
    "undefined_name", "cycler", "joiner", "lipsum", "bos_token", "f()", "ns",
    "messages[0].items()", "messages[0].keys()",
)  # fmt: skip
ACCESS = (
    "{place}.{name}", "{place}['{name}']", "{place}|attr('{name}')", "[{place}]|map(attribute='{name}')|list",
    "[{place}]|selectattr('{name}')|list", "[{place}]|sort(attribute='{name}')", "{place}|d({place}.{name})",
    "[{place}]|join('', attribute='{name}')", "[{place}]|unique(attribute='{name}')|list",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_no_internal_attribute_of_anything(place: str) -> None:
    """Whatever is tried, the text shows no object of Python's but the one that the template was given."""
    itself = shown("{{ " + place + " }}")
    for name in DUNDERS:
        for access in ACCESS:
            text = shown("{{ " + access.format(place=place, name=name) + " }}").replace(itself or "-", "")
            assert not re.search(r"<(class|built-in|function|slot|method|attribute|member)|mappingproxy", text), text


def shown(expression: str) -> str:
    """What the expression shows, object addresses left out; nothing when it is refused."""
    setting = "{% macro f() %}m{% endmacro %}{% set x = 'a' %}{% set ns = namespace(a=1) %}"
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", render(setting + expression, CHAT, bos_token="<s>"))
    except TokenizerError:
        return ""


ESCAPES = (
    "{{ ''|attr('__cl' ~ 'ass__') }}",
    "{{ ''[['__cl', 'ass__']|join] }}",
    "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ ('%c' % 95) }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}'['format'](1) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}'|safe).format(1) }}",
    "{{ ['{0.__class__}']|map('format', 1)|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace() %}{% set ns['__class__'] = 1 %}{{ ns.__class__ }}",
    "{{ self.environment }}",
    "{{ environment }}{{ environment.budget }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__init__.__globals__ }}",
    "{% call f() %}{% endcall %}",
    "{% macro f() %}{{ caller.__globals__ }}{% endmacro %}{% call f() %}x{% endcall %}",
    "{% macro f() %}{{ varargs.__class__ }}{{ kwargs.__class__ }}{{ f.__globals__ }}{% endmacro %}{{ f(1, a=2) }}",
    "{% import messages[0].content as x %}",
    "{% from 'os' import system %}",
    "{% include ['a', 'b'] %}",
    "{% extends messages %}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.sort() }}",
    "{{ messages[0].__setitem__('role', 'system') }}",
    "{% do messages.append(1) %}",
    "{% debug %}",
    "{% trans %}x{% endtrans %}",
    "{{ strftime_now.__wrapped__ }}",
    "{{ strftime_now('%Y', '%m') }}",
    "{{ range(10).__reduce_ex__(2) }}",
    "{{ ().__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ config }}{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ 'a'.encode() }}",
    "{{ 'a'.translate({97: 'b'}) }}",
    "{{ 'a'.maketrans('a', 'b') }}",
    "{{ 'a'.expandtabs(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 1.0.as_integer_ratio() }}",
    "{{ (1).bit_length() }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ [].copy() }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_known_ways_out_are_closed(template: str) -> None:
    assert shown(template).strip() in ("", "[]"), "what is undefined shows as nothing"


BUSY = (
    *("{{ " + a * 300 + "1" + b * 300 + " }}" for a, b in (("(", ")"), ("[", "]"), ("-", ""), ("not ", ""))),
    "{{ a" + "|list" * 300 + " }}",
    "{{ a" + "[0]" * 300 + " }}",
    "{{ a" + ".b" * 300 + " }}",
    "{{ a" + "()" * 300 + " }}",
    "{{ 1" + "+1" * 300 + " }}",
    "{{ 1" + "**1" * 300 + " }}",
    "{{ 'a' if a else " * 1 + "(1 if a else " * 300 + "1" + ")" * 300 + " }}",
    "{% if a %}" * 300 + "{% endif %}" * 300,
    "{% for a in b %}" * 300 + "{% endfor %}" * 300,
    "{% if a %}" + "{% elif b %}" * 15_000 + "{% endif %}",
    "{{ a }}" * 20_000,
    "{% set a = 1 %}" * 15_000,
    "{{ [" + "1," * 100_000 + "] }}",
    "{{ f(" + "1," * 100_000 + ") }}",
    "{% macro f(" + ",".join(f"a{i}" for i in range(20_000)) + ") %}{% endmacro %}",
    "{% filter upper %}" * 300 + "{% endfilter %}" * 300,
    "{{ messages|sort(attribute='" + "a." * 50_000 + "a')|list }}",
    *("".join(f"{{% set a{i} = {made} %}}" for i in range(1200)) for made in (
        "dict.fromkeys(range(100000))", "range(100000)|list", "'a' * 100000", "[1] * 100000", "messages * 50000",
        "('ab' * 50000)|list", "dict(zip=range(99999))", "('a ' * 50000).split()",
    )),
)  # fmt: skip


@pytest.mark.parametrize(
    "template", ["{{ " + "-" * 150 + "1 }}", "{{ a }}" * 30_000, "{% if a %}" + "{% elif b %}" * 101 + "{% endif %}"]
)
def test_the_bounds_are_named(template: str) -> None:
    with pytest.raises(TokenizerError, match="too large or nested too deeply"):
        render(template, CHAT)


def test_nothing_is_left_running_after_the_worst() -> None:
    """All of them in one process with 600 MiB of address space beyond what the modules take, and 60 s of CPU time."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from test_attack_template import BUSY, CHAT, TokenizerError, render
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for template in BUSY:
    try:
        text = render(template, CHAT)
    except TokenizerError as error:
        text = error.sentence()
        assert text.isprintable() and "MemoryError" not in text, template[:30]
    assert len(text) < 100_000
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
