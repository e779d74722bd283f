"""What the service keeps of one name: its versions, their shares of the requests, and what became of loading them.

Not here: loading and replacing (see `service`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from deepseek.errors import RequestError, did_you_mean
from deepseek.serve.hosted import Hosted, State


class Change(NamedTuple):
    """What happened to a model."""

    kind: Literal["loading", "loaded", "failed", "unloaded", "weights"]
    name: str
    version: str


class ModelStatus(NamedTuple):
    """What is known of one version: `share` of the requests that name none, seconds by phase of its loading."""

    name: str
    version: str
    kind: Literal["text", "tensor"] | None
    state: State
    reason: str
    share: float
    timings: Mapping[str, float]


class Slot:
    """All versions of one name. Changed under the service's lock only."""

    def __init__(self, source: Path | None, *, first: bool) -> None:
        self.source = source
        self.first = first
        """Whether the server began with it: it is ready only once these have been tried."""
        self.versions: dict[str, Hosted] = {}
        self.shares: dict[str, float] = {}
        self.paths: dict[str, Path] = {}
        self.pending: dict[str, State] = {}
        self.reasons: dict[str, str] = {}
        self.past: list[str] = []

    @property
    def main(self) -> Hosted | None:
        """The version with the largest share."""
        if not self.versions:
            return None
        return max(self.versions.values(), key=lambda hosted: self.shares.get(hosted.version, 0.0))


def states_of(slot: Slot) -> list[State]:
    """Return the state of the main version, else of what is or was to be loaded."""
    if slot.main is not None:
        return [slot.main.state]
    return list(slot.pending.values()) or ["unloaded"]


def scale(shares: dict[str, float], total: float) -> None:
    """Make shares sum to `total`, keeping their proportions."""
    before = sum(shares.values())
    for version in shares:
        shares[version] = shares[version] / before * total if before else total / len(shares)


def check_share(share: float | None) -> None:
    """Raise RequestError (400) unless a share is within 0 to 1."""
    if share is not None and not 0 <= share <= 1:
        raise RequestError("a share of the requests is wrong", field="share", found=share, wanted="0 to 1")


def no_model(name: str, known: Mapping[str, object]) -> RequestError:
    """Return the refusal of a name that is not served."""
    shown = name if name.isprintable() and len(name) <= 64 else ascii(name)[:64]
    return RequestError(
        f"the model '{shown}' does not exist here", field="model", status=404, fix=did_you_mean(shown, known)
    )


def no_version(name: str, version: str, known: Mapping[str, object]) -> RequestError:
    """Return the refusal of a version that is not loaded."""
    wanted = ", ".join(sorted(known)) or None
    return RequestError(
        f"the model '{name}' has no version {ascii(version)[:32]} here", field="version", status=404, wanted=wanted
    )
