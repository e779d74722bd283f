"""Cache and sessions on a real Redis, which is killed and comes back while they are used."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time

import pytest

from deepseek.serve.rest.schema import Message
from deepseek.serve.state.breaker import CircuitBreaker
from deepseek.serve.state.cache import LruCache
from deepseek.serve.state.options import State, StateOptions, build_state
from deepseek.serve.state.redis_cache import RedisCache
from deepseek.serve.state.redis_link import RedisDown, RedisLink
from deepseek.serve.state.response_cache import AnswerCache
from deepseek.serve.state.session_stores import MemoryStore, RedisStore
from deepseek.serve.state.sessions import SessionKeeper
from tests.fake_serving import FakeModel
from tests.rest_client import client_of

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class Redis:
    """A server on a port of its own, without files."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("redis-server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis():
    server = Redis()
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.kill()


def turn(number):
    return [Message(role="user", content=f"q{number}"), Message(role="assistant", content=f"a{number}")]


def quick_link(url, seconds=0.5):
    """Asks again soon, so that tests need not wait; slow enough for a busy machine."""
    return RedisLink(url, seconds=seconds, breaker=CircuitBreaker(0.02, 0.05))


def state_of(url, **bounds):
    cache_link, session_link = quick_link(url), quick_link(url)
    cache = AnswerCache(LruCache(1 << 20, 60.0), RedisCache(cache_link, 60.0))
    sessions = SessionKeeper(MemoryStore(60.0, 1 << 20), RedisStore(session_link, 60.0), **bounds)
    return State(cache, sessions, (cache_link, session_link))


async def up(link):
    for _ in range(200):
        if await link.trial():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the link stays down")


def run(story, *states):
    async def whole():
        try:
            await story()
        finally:
            for state in states:
                await state.close()

    asyncio.run(whole())


def test_processes_share_answers_and_a_foreign_value_is_not_one(redis):
    first, second = state_of(redis.url), state_of(redis.url)

    async def story():
        await first.start()
        await second.start()
        for _ in range(2):
            assert await first.cache.get("k") is None
            await first.cache.put("k", b"body")
        await asyncio.sleep(0.1)
        assert await second.cache.get("k") is None  # what it was never asked for it does not look for
        assert await second.cache.get("k") == b"body"
        assert (second.cache.stats().remote_hits, second.cache.stats().is_remote_up) == (1, True)

        async def spoil(client):
            return await client.set("deepseek:answer:other", b"x" * 16 + b"planted")

        await first.links[0].call(spoil)
        assert await second.cache.get("other") is None and await second.cache.get("other") is None

        async def left(client):
            return await client.pttl("deepseek:answer:k")

        assert 0 < await first.links[0].call(left) <= 60_000

    run(story, first, second)


def test_a_dead_redis_slows_nothing_and_loses_nothing(redis):
    state = state_of(redis.url)

    async def story():
        await state.start()
        for _ in range(2):
            await state.cache.get("k")
            await state.cache.put("k", b"body")
        redis.kill()
        assert await state.cache.get("k") == b"body"  # from memory
        for number in range(8):  # the breaker sees it
            for _ in range(2):
                assert await state.cache.get(f"new {number}") is None
                await state.cache.put(f"new {number}", b"fresh")
            assert await state.cache.get(f"new {number}") == b"fresh"
        assert state.cache.stats().is_remote_up is False
        with pytest.raises(RedisDown, match="lately"):
            await state.links[0].call(lambda client: client.ping())
        redis.start()
        await up(state.links[0])
        for _ in range(2):
            await state.cache.get("back")
            await state.cache.put("back", b"again")
        await asyncio.sleep(0.1)
        other = state_of(redis.url)
        await other.start()
        assert [await other.cache.get("back") for _ in range(2)] == [None, b"again"]
        await other.close()

    run(story, state)


def test_a_redis_that_hangs_is_waited_for_a_few_times_only(redis):
    link = quick_link(redis.url, seconds=0.02)
    remote = RedisCache(link, 60.0)

    async def story():
        await up(link)
        redis.process.send_signal(signal.SIGSTOP)
        waited = 0
        for _ in range(50):
            was_up = link.is_up
            assert await remote.get("k") is None
            waited += was_up
        assert not link.is_up and waited <= 4
        redis.process.send_signal(signal.SIGCONT)
        await up(link)
        assert await remote.get("k") is None and link.is_up
        await remote.close()

    asyncio.run(story())


def test_writes_that_pile_up_are_dropped(redis):
    link = quick_link(redis.url)
    remote = RedisCache(link, 60.0)

    async def story():
        remote.put("k", b"before it is connected")
        await up(link)
        for number in range(100):
            remote.put(f"k{number}", b"x")
        assert remote.dropped == 1 + 36
        await remote.close()

    asyncio.run(story())


def test_processes_append_to_one_session_at_once(redis):
    states = [state_of(redis.url, max_turns=1000) for _ in range(3)]

    async def story():
        for state in states:
            await state.start()
        await asyncio.gather(
            *(
                state.sessions.append("s", turn(f"{who}-{number}"), "anna")
                for who, state in enumerate(states)
                for number in range(12)
            )
        )
        found = [await state.sessions.load("s", "anna") for state in states]
        assert found[0] == found[1] == found[2]
        assert {message.content for message in found[0]} == {
            f"{letter}{who}-{number}" for letter in "qa" for who in range(3) for number in range(12)
        }
        assert len(found[0]) == 72
        assert await states[0].sessions.load("s", "ben") == []
        await states[0].sessions.forget("s", "anna")
        assert await states[1].sessions.load("s", "anna") == []

    run(story, *states)


@pytest.mark.parametrize("empty", [True, False])
def test_a_conversation_outlives_redis(redis, empty):
    """`empty`: Redis comes back without its data; otherwise it only hung."""
    state = state_of(redis.url)

    async def story():
        await state.start()
        sessions = state.sessions
        await sessions.append("s", turn(0))
        if empty:
            redis.kill()
        else:
            redis.process.send_signal(signal.SIGSTOP)
        for number in (1, 2, 3, 4):
            await sessions.append("s", turn(number))
        expected = [message for number in range(5) for message in turn(number)]
        assert await sessions.load("s") == expected
        assert sessions.stats().away >= 4
        if empty:
            redis.start()
        else:
            redis.process.send_signal(signal.SIGCONT)
        await up(state.links[1])
        assert await sessions.load("s") == expected
        await sessions.append("s", turn(5))
        other = state_of(redis.url)
        await other.start()
        assert await other.sessions.load("s") == [*expected, *turn(5)]
        await other.close()

    run(story, state)


def test_a_chat_of_twelve_turns_through_the_route_with_redis_killed_in_the_middle(redis):
    state = state_of(redis.url)
    model = FakeModel("ok. ", end=True, max_length=4096)
    asked = []
    encode = model.encode_chat
    model.encode_chat = lambda messages: asked.append(list(messages)) or encode(messages)
    with client_of({"say": model}, cache=state.cache, sessions=state.sessions) as client:
        for number in range(13):
            if number == 5:
                redis.kill()
            if number == 9:
                redis.start()
            body = {"messages": [{"role": "user", "content": f"turn {number}"}], "session_id": "s", "max_tokens": 8}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        client.portal.call(state.close)
    assert [one["content"] for one in asked[-1] if one["role"] == "user"] == [f"turn {n}" for n in range(13)]


def test_options_make_what_they_say(redis):
    state = build_state(StateOptions(redis_url=redis.url, cache_bytes=1 << 20, session_turns=2, redis_ms=500))

    async def story():
        await state.start()
        assert all(link.is_up for link in state.links) and len(state.links) == 2
        for number in range(4):
            await state.sessions.append("s", turn(number))
        assert await state.sessions.load("s") == [*turn(2), *turn(3)]

        async def left(client):
            return [await client.pttl(name) for name in await client.keys("deepseek:session:*")]

        (milliseconds,) = await state.links[1].call(left)
        assert 0 < milliseconds <= 3_600_000  # an hour after the last turn Redis lets it go

    run(story, state)
