"""API keys: what a file may hold, who is let in, and what happens when the file changes."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import ConfigError
from deepseek.serve.security.keys import KeyId, KeyRing, new_key, parse_keys


def line_of(name: str, key: str, rate: str = "") -> str:
    return f"{name}: sha256:{hashlib.sha256(key.encode()).hexdigest()}{rate}"


def test_each_key_of_a_file_is_known_by_its_name_and_rate(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("\n".join(["# people", line_of("ann", "a-1"), "", line_of("bob.lee", "b-2", "  90/min")]) + "\n")
    ring = KeyRing.read(file)
    assert len(ring) == 2
    assert ring.allows("a-1") == KeyId("ann", None)
    assert ring.allows(b"b-2") == KeyId("bob.lee", 90)


@given(st.text(max_size=40))
def test_nothing_but_the_key_is_let_in(presented):
    ring = KeyRing.of_secret("the-key")
    assert (ring.allows(presented) is not None) == (presented == "the-key")


def test_the_hash_itself_is_no_key():
    digest = hashlib.sha256(b"the-key").digest()
    ring = KeyRing.of_secret("the-key")
    for presented in (digest, digest.hex().encode(), bytes(32), b""):
        assert ring.allows(presented) is None


def test_a_new_key_opens_with_its_line_and_is_not_in_it(tmp_path):
    key, line = new_key("ann", 60)
    other, _ = new_key("ann")
    assert key != other and len(key) > 40 and key not in line
    file = tmp_path / "keys.txt"
    file.write_text(line)
    assert KeyRing.read(file).allows(key) == KeyId("ann", 60)
    assert KeyRing.read(file).allows(other) is None


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann: secret-in-plain",
        "ann: sha256:abc",
        "../ann: sha256:" + "0" * 64,
        "ann: md5:" + "0" * 64,
        "ann: sha256:" + "0" * 64 + " 0/min",
        "ann: sha256:" + "0" * 64 + " 5/s",
        ": sha256:" + "0" * 64,
    ],
)
def test_a_wrong_line_is_named_by_number_and_not_shown(line):
    with pytest.raises(ConfigError) as error:
        parse_keys(["# fine", line], "keys.txt")
    assert "keys.txt:2" in str(error.value)
    assert "plain" not in str(error.value)


def test_a_name_or_a_key_twice_is_refused():
    for lines in ([line_of("ann", "1"), line_of("ann", "2")], [line_of("ann", "1"), line_of("bob", "1")]):
        with pytest.raises(ConfigError, match="twice"):
            parse_keys(lines, "keys.txt")


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "é", "a\nb"])
def test_a_name_that_a_file_could_not_hold_is_refused(name):
    with pytest.raises(ConfigError, match="name"):
        new_key(name)


def test_a_file_without_keys_or_no_file_is_refused_with_the_next_step(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("# nobody yet\n")
    for path in (empty, tmp_path / "missing"):
        with pytest.raises(ConfigError) as error:
            KeyRing.read(path)
        assert "--new-key" in error.value.fix


def test_a_changed_file_counts_and_a_broken_one_does_not(tmp_path, caplog):
    file = tmp_path / "keys.txt"
    file.write_text(line_of("ann", "a-1"))
    ring = KeyRing.read(file)
    assert not ring.refresh()
    file.write_text(line_of("bob", "b-2-longer") + "\n")
    os.utime(file, ns=(1, 1))
    assert ring.refresh()
    assert ring.allows("a-1") is None and ring.allows("b-2-longer") == KeyId("bob")
    file.write_text("nonsense")
    assert not ring.refresh() and ring.allows("b-2-longer")
    file.unlink()
    assert not ring.refresh() and ring.allows("b-2-longer")
    assert "the keys stay as they were" in caplog.text and "nonsense" not in caplog.text


def test_a_file_that_everyone_may_change_is_warned_of(tmp_path, caplog):
    file = tmp_path / "keys.txt"
    file.write_text(line_of("ann", "a-1"))
    file.chmod(0o666)
    KeyRing.read(file)
    assert "chmod o-w" in caplog.text


def test_a_key_that_was_good_is_found_quickly_and_forgotten_with_the_file(tmp_path, monkeypatch):
    (first, first_line), (second, second_line) = new_key("ann"), new_key("ann")
    path = tmp_path / "keys.txt"
    path.write_text(first_line)
    ring = KeyRing.read(path)
    assert [ring.allows(key) for key in (first, second)] == [KeyId("ann"), None]
    slow = []
    monkeypatch.setattr(ring, "_blind", lambda digest, blind=ring._blind: slow.append(digest) or blind(digest))
    assert [ring.allows(first), ring.allows(first.encode())] == [KeyId("ann")] * 2 and not slow
    assert ring.allows(second) is None and ring.allows(second) is None
    assert len(slow) == 2 and len(ring._table.seen) == 1  # what is not good is kept nowhere
    path.write_text(second_line)
    assert ring.refresh(force=True)
    assert [ring.allows(key) for key in (first, second)] == [None, KeyId("ann")]


def test_keys_that_change_while_one_is_looked_up_leave_nothing_behind(tmp_path, monkeypatch):
    (old, old_line), (_, new_line) = new_key("ann"), new_key("bob")
    path = tmp_path / "keys.txt"
    path.write_text(old_line)
    ring = KeyRing.read(path)
    blind = ring._blind

    def change(digest):
        monkeypatch.setattr(ring, "_blind", blind)
        path.write_text(new_line)
        ring.refresh(force=True)
        return blind(digest)

    monkeypatch.setattr(ring, "_blind", change)
    ring.allows(old)
    assert ring.allows(old) is None
