"""Names, quantities and addresses as Kubernetes and container registries spell them, checked before they are written.

Sources: RFC 1123 (labels), Kubernetes' resource quantities, the OCI distribution specification (image references).
"""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import ip_address
from urllib.parse import urlsplit

from deepseek.errors import ConfigError

LONGEST_NAME = 40
"""Shorter than a label's 63 characters: names of parts and of pods are made by adding to it."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_UNITS["Ti"] = 1 << 40
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def check_label(text: str, what: str, longest: int = 63) -> str:
    """Return an RFC 1123 label. Raises ConfigError."""
    if len(text) > longest or not _LABEL.fullmatch(text):
        raise ConfigError(
            f"the {what} can't be used in a cluster",
            found=ascii(text),
            wanted=f"1 to {longest} of a-z, 0-9 and '-', with a letter or digit at both ends (RFC 1123)",
        )
    return text


def check_subdomain(text: str, what: str) -> str:
    """Return an RFC 1123 subdomain, as Secrets and volume claims are called. Raises ConfigError."""
    if not _SECRET.fullmatch(text) or ".." in text:
        raise ConfigError(
            f"the {what} can't be used in a cluster",
            found=ascii(text),
            wanted="1 to 253 of a-z, 0-9, '-' and '.', with a letter or digit at both ends (RFC 1123)",
        )
    return text


def check_address(text: str) -> str:
    """Return an IP address, as ports are published at. Raises ConfigError."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise ConfigError("ports are published at an address", found=ascii(text), wanted="such as 127.0.0.1") from None


def bracketed(host: str) -> str:
    """Return an address as it stands before a port: `[::1]`."""
    return f"[{host}]" if ":" in host else host


def check_image(text: str) -> str:
    """Return an image's reference, which names a version. Raises ConfigError."""
    match = _IMAGE.fullmatch(text) if len(text) <= 512 else None
    if match is None:
        raise ConfigError(
            "this is no reference to an image",
            found=ascii(text[:200]),
            wanted="such as registry.example/team/model:1.0",
        )
    if not match["digest"] and match["tag"] in {None, ":latest"}:
        raise ConfigError(
            "an image needs a version: what 'latest' is differs from node to node and from day to day",
            found=text,
            wanted="a tag such as :1.0, or a digest @sha256:...",
        )
    return text


def amount(quantity: str, what: str) -> Decimal:
    """Return a quantity such as `500m`, `2` or `1.5Gi` as a number (cores, bytes). Raises ConfigError."""
    match = _QUANTITY.fullmatch(quantity) if len(quantity) <= 24 else None
    if match is None:
        raise ConfigError(
            f"{what} is no quantity", found=ascii(quantity), wanted="such as 500m or 2 (cores), 512Mi or 4Gi (memory)"
        )
    number, unit = Decimal(match[1]), match[2] or ""
    value = number / 1000 if unit == "m" else number * _UNITS[unit]
    if value <= 0:
        raise ConfigError(f"{what} must be above zero", found=quantity)
    return value


def cores(quantity: str) -> str:
    """Return cores as Docker spells them: `1.5`. Raises ConfigError."""
    return f"{amount(quantity, 'cpu').normalize():f}"


def memory_bytes(quantity: str) -> str:
    """Return memory as Docker spells it: in bytes, since its `g` is Kubernetes' `Gi`. Raises ConfigError."""
    return f"{int(amount(quantity, 'memory'))}b"


def redis_port(url: str) -> int:
    """Return the port in the address of a Redis. Raises ConfigError, without a password in it."""
    wanted = "redis://HOST:6379/0 or rediss://HOST:6379/0"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("the address of Redis can't be read", wanted=wanted) from None
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or re.search(r"[^!-~]", url):
        raise ConfigError("the address of Redis can't be used in a cluster", wanted=wanted)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "a password would stand in these files for everyone to read",
            wanted=wanted,
            fix="keep the whole address under the key 'url' of a Secret, and name that: --redis-secret NAME",
        )
    return 6379 if port is None else port
