"""API keys: kept as hashes, compared in constant time, re-read when their file changes.

A file has one key a line: `NAME: sha256:HEX`, and, where a key has its own rate, `NAME: sha256:HEX 120/min`. Empty
lines and those that begin with `#` are passed over. Keys come from `new_key`: 256 random bits, so a plain SHA-256 is
enough (there is nothing to guess that a slow hash would protect, and a slow hash lets strangers spend the server's
time). Not here: rate limits (see `limits`) and where a key stands in a request (see `rest.door`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from deepseek.errors import ConfigError

_LOG = logging.getLogger("deepseek.serve")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LINE = re.compile(
    rf"(?P<name>{_NAME})\s*:\s*sha256:(?P<hash>[0-9a-fA-F]{{64}})(?:\s+(?P<rate>[1-9][0-9]{{0,6}})/min)?"
)
_MAX_BYTES = 16 << 20


class KeyId(NamedTuple):
    """Whose key it is: the name in the file, and requests a minute where the file says so."""

    name: str
    requests_per_minute: int | None = None


class _Table(NamedTuple):
    """The keys of one reading of the file, and those of them that came; a new reading forgets both."""

    keys: dict[bytes, tuple[bytes, KeyId]]
    seen: dict[bytes, tuple[bytes, KeyId]]


class KeyRing:
    """The keys of one server.

    A presented key is hashed, and the hash is hashed again with a secret of this process before it is looked up: how
    long the look-up takes tells only of numbers that nobody outside can know, for any number of keys. A key that was
    found good is found again by one keyed hash (BLAKE2, RFC 7693) of the whole, until the keys change.
    """

    def __init__(self, hashes: Mapping[str, KeyId], path: Path | None = None) -> None:
        """Take SHA-256 digests in hex with their names. Raises ConfigError where there is none."""
        self._pepper = secrets.token_bytes(32)
        self._path = path
        self._stamp = None if path is None else _stamp(path)
        self._mark = hashlib.blake2b(digest_size=32, key=secrets.token_bytes(32))
        self._table = _Table({}, {})
        self._replace(hashes)

    @classmethod
    def of_secret(cls, key: str, name: str = "default") -> Self:
        """Return a ring of one key given in plain. Raises ConfigError for one that no header can carry."""
        if not re.fullmatch(r"[!-~]{1,512}", key):
            raise ConfigError("the API key can't be sent in a header", wanted="printable ASCII without spaces")
        return cls({hashlib.sha256(key.encode()).hexdigest(): KeyId(name)})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the keys of a file. Raises ConfigError that names the line."""
        return cls(_read(Path(path)), Path(path))

    def __len__(self) -> int:
        return len(self._table.keys)

    def allows(self, presented: str | bytes) -> KeyId | None:
        """Return whose key it is, None for one that is not known."""
        given = presented.encode("utf-8", "surrogateescape") if isinstance(presented, str) else presented
        table, hasher = self._table, self._mark.copy()
        hasher.update(given)
        mark = hasher.digest()
        seen, owner = table.seen.get(mark, (_NOBODY, None))
        if hmac.compare_digest(mark, seen):
            return owner
        digest = self._blind(hashlib.sha256(given).digest())
        known, owner = table.keys.get(digest, (_NOBODY, None))
        if owner is None or not hmac.compare_digest(digest, known):
            return None
        table.seen[mark] = mark, owner  # one for each key at most: no two texts have one SHA-256
        return owner

    def refresh(self, *, force: bool = False) -> bool:
        """Read the file again where it changed (`force`: in any case); return whether the keys are new.

        A file that is gone or wrong is logged, and the keys stay as they were: a slip locks nobody out, and a key
        goes only when a proper file is without it.
        """
        if self._path is None:
            return False
        stamp = _stamp(self._path)
        if stamp == self._stamp and not force:
            return False
        self._stamp = stamp
        try:
            self._replace(_read(self._path))
        except ConfigError as error:
            _LOG.error("the keys stay as they were: %s", error)
            return False
        _LOG.warning("%d API keys read from %s", len(self), self._path)
        return True

    def _replace(self, hashes: Mapping[str, KeyId]) -> None:
        if not hashes:
            raise ConfigError(
                f"no API key in {self._path}", wanted="a line NAME: sha256:HEX", fix="deepseek serve --new-key NAME"
            )
        blinded = ((self._blind(bytes.fromhex(digest)), owner) for digest, owner in hashes.items())
        self._table = _Table({digest: (digest, owner) for digest, owner in blinded}, {})

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._pepper, digest, "sha256")


_NOBODY = bytes(32)


def new_key(name: str, requests_per_minute: int | None = None) -> tuple[str, str]:
    """Return a new key and its line for the file. The key itself is kept nowhere. Raises ConfigError for a bad name."""
    if not re.fullmatch(_NAME, name):
        raise ConfigError("this name is not fit for a key", found=ascii(name), wanted="letters, digits, '.', '_', '-'")
    if requests_per_minute is not None and not 0 < requests_per_minute < 10_000_000:
        raise ConfigError("the key's rate is out of range", found=requests_per_minute, wanted="1 to 9999999")
    key = f"ds-{secrets.token_urlsafe(32)}"
    rate = "" if requests_per_minute is None else f" {requests_per_minute}/min"
    return key, f"{name}: sha256:{hashlib.sha256(key.encode()).hexdigest()}{rate}"


def _read(path: Path) -> dict[str, KeyId]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is too large for a file of keys", wanted=f"at most {_MAX_BYTES >> 20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the keys in {path} can't be read", found=error, fix="deepseek serve --new-key NAME makes a line for it"
        ) from None
    return parse_keys(lines, str(path))


def parse_keys(lines: Iterable[str], source: str) -> dict[str, KeyId]:
    """Return digest -> owner of a file's lines. Raises ConfigError for a wrong line or a name or hash used twice."""
    hashes: dict[str, KeyId] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:  # the line may hold a key in plain: it is not shown
            raise ConfigError(
                f"{source}:{number} is no key's line",
                wanted="NAME: sha256:HEX, then '60/min' or nothing",
                fix="deepseek serve --new-key NAME prints such a line",
            )
        name, digest = match["name"], match["hash"].lower()
        if name in names or digest in hashes:
            raise ConfigError(f"{source}:{number} names a key twice", found=name, fix="take one of the two lines out")
        names.add(name)
        hashes[digest] = KeyId(name, int(match["rate"]) if match["rate"] else None)
    return hashes


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    if stat.S_IMODE(facts.st_mode) & stat.S_IWOTH:
        _LOG.warning("%s can be changed by everyone on this machine: chmod o-w %s", path, path)
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
