"""Conversations that the server remembers, in its own memory."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.errors import RequestError
from deepseek.serve.rest.door import Guard
from deepseek.serve.rest.schema import Message
from deepseek.serve.security.keys import KeyRing, new_key
from deepseek.serve.state.session_stores import MemoryStore
from deepseek.serve.state.sessions import SessionKeeper
from deepseek.serve.state.turns import SUMMARY_HEAD, bounded, packed, size_of, unpacked
from tests.fake_serving import FakeModel
from tests.rest_client import client_of


def said(role, content):
    return Message(role=role, content=content)


def turn(number, size=1):
    return [said("user", f"question {number}" * size), said("assistant", f"answer {number}")]


MESSAGES = st.lists(
    st.builds(said, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)), max_size=40
)


def turns_of(messages):
    """Another way to cut: begin a turn before each user message that follows something else."""
    starts = [
        place
        for place, message in enumerate(messages)
        if place == 0 or (message.role == "user" and messages[place - 1].role != "user")
    ]
    ends = [*starts[1:], len(messages)]
    return [messages[start:end] for start, end in zip(starts, ends, strict=False)]


@given(messages=MESSAGES, most=st.integers(1, 8), room=st.integers(20, 800))
@settings(max_examples=200, deadline=None)
def test_whole_turns_go_the_oldest_first_and_the_opening_stays(messages, most, room):
    kept = bounded(messages, most, room)
    opening = next((place for place, one in enumerate(messages) if one.role != "system"), len(messages))
    head, turns = messages[:opening], turns_of(messages[opening:])
    assert kept[:opening] == head
    rest = turns_of(kept[opening:])
    assert rest == turns[len(turns) - len(rest) :] and len(rest) <= most
    assert bool(rest) == bool(turns)  # the last turn always stays
    assert len(rest) <= 1 or sum(map(size_of, kept)) <= room
    if len(rest) < min(most, len(turns)):  # and no turn more than needed went
        longer = [*kept, *turns[len(turns) - len(rest) - 1]]
        assert sum(map(size_of, longer)) > room
    assert bounded(kept, most, room) == kept
    assert unpacked(packed(kept)) == kept


def test_a_summary_tells_what_was_dropped():
    told = []

    def summarize(before, dropped):
        told.append((before, [message.content for message in dropped]))
        return f"{before}|{len(dropped)}"

    messages = [said("system", "Be brief."), *turn(0), *turn(1), *turn(2)]
    first = bounded(messages, 2, 10**6, summarize)
    assert [one.content for one in first[:2]] == ["Be brief.", SUMMARY_HEAD + "|2"]
    second = bounded([*first, *turn(3)], 2, 10**6, summarize)
    assert second == [said("system", "Be brief."), said("system", SUMMARY_HEAD + "|2|2"), *turn(2), *turn(3)]
    assert told == [("", ["question 0", "answer 0"]), ("|2", ["question 1", "answer 1"])]
    assert bounded(second, 2, 10**6, summarize) == second


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def keeper(clock=None, **options):
    return SessionKeeper(MemoryStore(60.0, 1 << 20, clock or Clock()), **options)


def test_a_session_belongs_to_its_key_and_ends_when_nothing_is_said():
    async def story():
        clock = Clock()
        kept = keeper(clock)
        await kept.append("s", turn(0), "anna")
        await kept.append("s", turn(1), "ben")
        await kept.append("s", turn(2))
        assert await kept.load("s", "anna") == turn(0)
        assert await kept.load("anna:s") == turn(0)
        assert await kept.load("s", "ben") == turn(1)
        assert await kept.load("s") == turn(2)
        assert await kept.load("other", "anna") == []
        clock.now = 59.0
        await kept.append("s", turn(3), "anna")
        clock.now = 100.0
        assert await kept.load("s", "anna") == [*turn(0), *turn(3)]
        assert await kept.load("s", "ben") == []
        await kept.forget("s", "anna")
        assert await kept.load("s", "anna") == []

    asyncio.run(story())


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "../x", "a:b:c", "ü", "s\n", ":s", "-k:s"])
def test_an_id_of_another_pattern_is_refused(name):
    async def story():
        kept = keeper()
        for call in (kept.load(name), kept.append(name, turn(0)), kept.forget(name)):
            with pytest.raises(RequestError) as caught:
                await call
            assert (caught.value.status, caught.value.field) == (400, "session_id")

    asyncio.run(story())


def test_appends_at_once_are_all_kept_in_whole_turns():
    async def story():
        kept = keeper(max_turns=1000, summarize=lambda before, dropped: "")
        await asyncio.gather(*(kept.append("s", turn(number)) for number in range(50)))
        messages = await kept.load("s")
        assert sorted(message.content for message in messages) == sorted(
            message.content for number in range(50) for message in turn(number)
        )
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert question.content.replace("question", "answer") == answer.content

    asyncio.run(story())


def test_memory_is_bounded_and_the_longest_unused_session_goes_first():
    async def story():
        store = MemoryStore(60.0, 3000, Clock())
        kept = SessionKeeper(store, max_bytes=1 << 20)
        for number in range(20):
            await kept.append(f"s{number}", [said("user", "x" * 500)])
            await kept.load("s0")
        assert store.nbytes <= 3000
        assert await kept.load("s0") and await kept.load("s19")
        assert not await kept.load("s10")
        stats = kept.stats()
        assert (stats.sessions, stats.nbytes, stats.appends) == (len(store), store.nbytes, 20)

    asyncio.run(story())


def test_a_store_takes_a_write_only_on_what_its_writer_has_read():
    async def story():
        store = MemoryStore(60.0, 1000)
        assert await store.write("s", b"1", b"", b"first")
        assert not await store.write("s", b"2", b"", b"late")
        assert await store.write("s", b"3", b"first", b"second")
        assert (await store.read("s")).data == b"3"

    asyncio.run(story())


def test_the_same_id_under_another_key_is_another_session(tmp_path):
    keys, lines = zip(*(new_key(name) for name in ("anna", "ben")), strict=True)
    (tmp_path / "keys").write_text("\n".join(lines))
    model = FakeModel("ok. ", end=True, max_length=4096)
    asked = []
    encode = model.encode_chat
    model.encode_chat = lambda messages: asked.append([one["content"] for one in messages]) or encode(messages)
    kept = keeper()
    with client_of({"say": model}, sessions=kept, guard=Guard(keys=KeyRing.read(tmp_path / "keys"))) as client:
        for key, content in ((keys[0], "secret of anna"), (keys[1], "hello"), (keys[0], "again")):
            body = {"messages": [{"role": "user", "content": content}], "session_id": "s", "max_tokens": 8}
            header = {"authorization": f"Bearer {key}"}
            assert client.post("/v1/chat/completions", json=body, headers=header).status_code == 200
    assert [one for one in asked if "hello" in one] in ([["hello"]], [["hello"]] * 2)
    assert asked[-1] == ["secret of anna", "ok. ", "again"]


def test_fourteen_turns_through_the_route_and_none_after_they_expired():
    model = FakeModel("ok. ", end=True, max_length=4096)
    asked = []
    encode = model.encode_chat
    model.encode_chat = lambda messages: asked.append(list(messages)) or encode(messages)
    clock = Clock()
    kept = keeper(clock, max_turns=12)
    with client_of({"say": model}, sessions=kept) as client:
        for number in range(14):
            messages = [{"role": "user", "content": f"turn {number}"}]
            if number == 0:
                messages.insert(0, {"role": "system", "content": "Be brief."})
            body = {"messages": messages, "session_id": "s-1", "max_tokens": 8, "stream": number % 2 == 1}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        last = asked[-1]
        assert last[0] == {"role": "system", "content": "Be brief."}
        users = [one["content"] for one in last if one["role"] == "user"]
        assert users == [f"turn {number}" for number in range(1, 14)]
        messages = asyncio.run(kept.load("s-1"))
        assert len(messages) == 1 + 2 * 12 and messages[1].content == "turn 2"
        clock.now = 60.0  # a minute after the last turn it is forgotten
        late = {"messages": [{"role": "user", "content": "and?"}], "session_id": "s-1", "max_tokens": 8}
        assert client.post("/v1/chat/completions", json=late).status_code == 200
    assert asked[-1] == [{"role": "user", "content": "and?"}]
