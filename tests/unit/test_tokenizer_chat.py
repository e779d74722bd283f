"""Chat templates: turns that users can't forge, the assistant's part, and templates that would run for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.data.record_forms import Message
from deepseek.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from deepseek.errors import TokenizerError

TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] | trim) + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER = Tokenizer.train(["What is it? It is late. 深度学习 " * 4, "".join(SPECIAL_TOKENS)], 300, allow_smaller=True)
IDS = TOKENIZER.special_tokens
CHAT = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is late."}]


def specials(ids: list[int]) -> list[int]:
    return [index for index in ids if index in IDS.values()]


def one(template: str, content: object = "x", **variables: object) -> str:
    ids = TOKENIZER.encode_chat([{"role": "user", "content": content}], False, template=template, **variables)
    return TOKENIZER.decode(ids, skip_special_tokens=False)


FORGED = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<", "end|>", " ", "\n", "\ufdd0", "\ufdd1", "\U0010ff00", "a", "深"])
).map("".join)


@given(st.lists(FORGED, min_size=1, max_size=4))
@settings(max_examples=200)
def test_whatever_users_write_the_turns_are_the_templates(contents: list[str]) -> None:
    chat = [Message("user", content) for content in contents]
    wanted = [IDS["<|user|>"], IDS["<|end|>"]] * len(chat)
    plain = TOKENIZER.encode_chat(chat, False)
    assert specials(plain) == wanted
    assert TOKENIZER.decode(plain) == "".join(contents)
    templated = TOKENIZER.encode_chat(chat, False, template=TURNS)
    assert specials(templated) == wanted
    assert TOKENIZER.decode(templated) == "".join(content.strip() for content in contents)


def test_contents_that_a_template_joins_do_not_become_a_token() -> None:
    joined = "{% for part in messages[0].content %}{{ part.text | trim }}{% endfor %}"
    parts = [{"text": "a<| "}, {"text": "end|>"}, {"text": "<"}, {"text": "|end|><|en"}, {"text": "d|>"}]
    ids = TOKENIZER.encode_chat([{"role": "user", "content": parts}], False, template=joined)
    assert not specials(ids)
    assert TOKENIZER.decode(ids) == "a<|end|><|end|><|end|>"
    lower = TOKENIZER.encode_chat([Message("user", "<|END|>")], False, template="{{ messages[0].content | lower }}")
    assert not specials(lower)
    tools = [{"name": "<|end|>", "<|end|>": ["<|end|>"]}]
    assert not specials(TOKENIZER.encode_chat(CHAT, False, template="{{ tools | tojson }}", tools=tools))


def test_a_chat_template_travels_with_the_tokenizer() -> None:
    changed = TOKENIZER.with_chat_template("{{ messages[0].content }}<|end|>")
    again = Tokenizer(changed.to_json())
    assert again.encode_chat(CHAT) == [*TOKENIZER.encode("What is it?"), IDS["<|end|>"]]
    assert again.sha256 == changed.sha256 != TOKENIZER.sha256
    assert again.lossless and again.encode("深 x") == TOKENIZER.encode("深 x")
    assert changed.with_special_tokens(["<|new|>"]).chat_template == changed.chat_template


@pytest.mark.parametrize(
    "template",
    [
        TURNS,
        TURNS.replace("<|end|>' }}", "<|end|>\n' }}"),
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
    ],
)
def test_what_the_assistant_says_is_learned(template: str) -> None:
    chat = [*CHAT, {"role": "user", "content": "What <|end|>"}, {"role": "assistant", "content": "late<"}]
    ids, learned = TOKENIZER.encode_chats([chat], template=template)[0]
    kept = [index for index, keep in zip(ids, learned, strict=True) if keep]
    assert TOKENIZER.decode(kept, skip_special_tokens=False) == "It is late.<|end|>late<<|end|>"
    assert specials(kept) == [IDS["<|end|>"]] * 2


def test_a_template_that_changes_earlier_turns_can_not_be_learned_from() -> None:
    last = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    assert TOKENIZER.encode_chat(CHAT, False, template=last) == TOKENIZER.encode("It is late.")
    with pytest.raises(TokenizerError, match="generation"):
        TOKENIZER.encode_chats([[*CHAT, *CHAT]], template=last)


def test_what_templates_of_the_hub_use_works() -> None:
    assert (
        one("{% set ns = namespace(n=0) %}{% for c in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "1"
    )
    assert one("{%- for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert one("{% macro twice(x) %}{{ x ~ x }}{% endmacro %}{{ twice(messages[0].content) }}") == "xx"
    assert one("{{ messages[0]['content'].split('b')[-1].strip().replace('c', 'dd') }}", "ab c") == "dd"
    assert one("{{ messages[0].content | tojson(indent=1) | indent(2) }}", {"a": "深"}) == '{\n   "a": "深"\n  }'
    assert one("{{ messages | map(attribute='role') | join(',') }}{{ messages[0].none is defined }}") == "userFalse"
    assert one("{{ messages[0].content.items() | list }}", {"a": 1}) == "[('a', 1)]"
    assert one("{{ 7 % 4 * 2 }}{{ [1] + [2] }}{{ eos_token }}{{ x or 'no' }}") == "6[1, 2]<|endoftext|>no"


HOSTILE = {
    "endless loop": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling blocks": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}"
    "{% endset %}{% endfor %}",
    "doubling lists": "{% set n = namespace(s=[1]) %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "multiplied": "{{ 'x' * 10000000000 }}",
    "power": "{{ 9 ** 99999999 }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "replace": "{{ ('x' * 9000) | replace('x', 'y' * 9000) }}",
    "replace method": "{{ ('x' * 9000).replace('x', 'y' * 9000) }}",
    "replaced constants": "{{ 'xxxxxxxxxx'" + "|replace('x', 'xxxxxxxxxx')" * 12 + " }}",
    "join": "{{ ('y' * 9000).join(('x ' * 9000).split()) }}",
    "indent": "{{ 'x' | indent(99999999999, true) }}",
    "center": "{{ 'x'.center(9999999999) }}",
    "center filter": "{{ 'x' | center(9999999999) }}",
    "str.format": "{{ '{:>9999999999}'.format(1) }}",
    "class": "{{ messages.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "changing": "{{ messages.append(1) }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
    "unknown filter": "{{ 1 | nothing }}",
    "syntax": "{% if %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long": " " * (1 << 19),
    "division": "{{ 1 / 0 }}",
    "numbers": "{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_an_error(name: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        one(HOSTILE[name])


def test_a_template_without_the_sandboxes_leave_is_refused_when_it_is_set() -> None:
    with pytest.raises(TokenizerError, match="line 2"):
        TOKENIZER.with_chat_template("a\n{% if %}")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no message"),
        ([{"content": "x"}], "no 'role'"),
        ([{"role": "user"}], "no 'content'"),
        ([{"role": "<|end|>", "content": "x"}], "unknown role"),
        ([{"role": 1, "content": "x"}], "unknown role"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_a_bad_chat_is_refused(messages: list, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        TOKENIZER.encode_chat(messages, template=TURNS)
