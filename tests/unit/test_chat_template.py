"""A stranger's chat template: it cannot run code, cannot run for ever, and an honest one renders as in transformers."""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.template import render
from edgekit.errors import TokenizerError

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Two\n lines? "},
    {"role": "assistant", "content": "<think>hm</think>Yes."},
    {"role": "user", "content": 'Quote "this" & <that>, \u00e9'},
]


def refused(template: str, messages: list[dict[str, str]] | None = None) -> str:
    with pytest.raises(TokenizerError) as caught:
        render(template, messages or HELLO)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__']['__base__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.func.__globals__ }}",
        "{{ strftime_now.__reduce__() }}",
        "{{ self._TemplateReference__context }}",
        "{{ self.__init__.__globals__ }}",
        "{{ range.__subclasses__() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '%s' % messages }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ (messages|map(attribute='__class__')|first).__mro__ }}",
        "{{ messages[0].get.__self__ }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'base' %}",
        "{{ ''.encode('idna') }}",
        "{{ 'x'|pprint }}",
    ],
)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    refused(template)


MEMORY_BOMBS = (
    "{{ 'a' * 10**9 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{% set f = 'a' %}{{ f['format']() }}{{ '{:1000000000}'['format'](1) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "{% set a = 'a' * 1000000 %}{{ a|replace(new=a, old='a') }}",
    "{% set a = 'a' * 1000000 %}{{ a|join(a) }}",
    "{% set a = 'a' * 1000000 %}{{ a.join(messages|list + ['x'] * 9999) }}",
    "{% set a = 'a' * 8000000 %}" + "".join(f"{{% set a{i} = a[1:] %}}" for i in range(50)),
)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 5000 %}{% for b in 'x' * 5000 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [0] * 10**9 }}",
        "{{ 9**(9**9) }}",
        "{% set ns = namespace(n=7) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
        "{% set ns = namespace(t='aa') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t='aa') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set ns = namespace(t=[0]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace(t=[0]) %}{% for i in range(60) %}{% set ns.t = {'a': ns.t, 'b': ns.t} %}{% endfor %}",
        "{% set ns = namespace(t=[0]) %}{% for i in range(60) %}{% set ns.t = dict(a=ns.t, b=ns.t) %}{% endfor %}"
        "{{ ns.t|tojson }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace(t='aaaa') %}{% for i in range(60) %}"
        "{% set x %}{{ ns.t }}{{ ns.t }}{% endset %}{% set ns.t = x %}{% endfor %}",
        "{% set a = 'a' * 100000 %}{{ a|replace('a', a) }}",
        "{% set a = 'a' * 100000 %}{{ a.replace('', a) }}",
        "{% set a = 'a' * 1000000 %}{{ range(99999)|map('string')|join(a) }}",
        "{% set a = 'a' * 1000000 %}{{ a.join(range(99999)|map('string')) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ 1|round(1000000000, 'ceil') }}",
        "{{ [1]|slice(1000000000)|list }}",
        "{{ messages|tojson(indent=1000000000) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 20000 + "1 }}",
        "{{ 1" + "+1" * 20000 + " }}",
        "x" * 300_000,
    ],
)
def test_bombs_are_refused_soon(template: str) -> None:
    start = time.monotonic()
    refused(template)
    assert time.monotonic() - start < 15  # one or two seconds, on a busy machine too


def test_bombs_do_not_fill_the_memory_first() -> None:
    tracemalloc.start()
    try:
        for template in MEMORY_BOMBS:
            refused(template)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0",
        "{% if x %}",
        "{{ undefined.attribute }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1/0 }}",
    ],
)
def test_broken_template_is_one_sentence(template: str) -> None:
    assert "chat template" in refused(template)


def test_the_templates_own_refusal_is_told() -> None:
    template = "{{ raise_exception('roles must\nalternate\x1b[31m') }}"
    assert "roles must alternate" in refused(template)


def test_messages_are_not_changed_and_lone_surrogates_are_refused() -> None:
    refused("{{ messages[0].content }}", [{"role": "user", "content": "\ud800"}])


PIECES = (
    "{{ }} {% %} {# #} | ( ) [0] ~ = - * 99 'a' x messages .content tojson endfor if endif set loop.first __class__"
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*PIECES.split(), "for x in ", "\n", "\x00", " "]), max_size=14).map(" ".join))
def test_any_template_gives_text_or_one_sentence(template: str) -> None:
    fault = None
    try:
        render(template, HELLO)
    except TokenizerError as error:
        fault = str(error)
    assert fault is None or fault.isprintable()


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MODERN = """
{%- if tools is not none and tools %}{{ raise_exception('no tools') }}{% endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- macro turn(role, text) -%}
    <|{{ role }}|>{{ text.strip() if text is string else text | tojson }}<|end|>
{%- endmacro %}
{%- macro last(position) -%}{{ '.' if position.last else position.index }}{%- endmacro %}
{%- for message in messages %}{{ last(loop) }}{{ (message.content | safe).strip() }}{% endfor %}
{%- set ns = namespace(count=0, seen=[]) %}
{{- system ~ ' / ' ~ strftime_now('%d %b %Y') }}
{%- for message in messages if message.role != 'tool' %}
    {%- set ns.count = ns.count + loop.index0 * 2 %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- if '</think>' in message.content %}
        {{- turn(message.role, message.content.split('</think>')[-1].lstrip('\n')) }}
    {%- elif loop.last %}
        {% generation %}{{ turn(message['role'], message['content']) }}{% endgeneration %}
    {%- else %}
        {{- turn(message.role, message) }}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{{ ns.count }} {{ ns.seen | join(',') }} {{ messages | length }} {{ messages | map(attribute='role') | list | tojson }}
{{- messages | selectattr('role', 'equalto', 'user') | list | length }}{{ missing is defined }}{{ 7 // 2 ** 2 % 5 }}
{{ {'a': [1, 2.5, none, true], 'b': 'caf\u00e9 <&>'} | tojson(indent=2) }} {{ (1, 2) }} {{ 'x' * 3 }}{{ missing }}
{%- if add_generation_prompt %}
<|assistant|>
{% endif %}
"""


NOW = datetime(2024, 2, 29)


def test_chatml() -> None:
    assert render(CHATML, HELLO, add_generation_prompt=True) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_date_is_the_given_one() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", HELLO, now=NOW) == "29 Feb 2024"


def test_long_conversation_is_within_the_bounds() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 400} for i in range(300)]
    assert render(CHATML, messages, add_generation_prompt=True).count("<|im_start|>") == 302
    template = (
        "{% set ns = namespace(seen=[]) %}{% for m in messages %}{% set ns.seen = ns.seen + [m] %}"
        "{% if loop.index == messages|length and messages[1:]|list %}"
        "{{ m.content.strip().split(' ')|length }}{% endif %}"
        "{% endfor %} {{ ns.seen|length }}"
    )
    assert render(template, messages) == "400 300"


@pytest.mark.parametrize("template", [CHATML, MODERN])
@pytest.mark.parametrize("messages", [HELLO, CHAT])
@pytest.mark.filterwarnings("ignore")
def test_same_text_as_transformers(template: str, messages: list[dict[str, str]]) -> None:
    oracle: Any = pytest.importorskip("transformers.utils.chat_template_utils")
    variables = {"bos_token": "<s>", "add_generation_prompt": True, "tools": None}
    expected = oracle._compile_jinja_template(template).render(messages=messages, **variables)
    got = render(template, messages, now=datetime.now(), **variables)
    assert got == expected
