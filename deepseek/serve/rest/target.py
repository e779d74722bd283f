"""The model that requests with one head go to, found once and again only after a change.

Not here: which model it is (see `deepseek.serve.registry`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

_T = TypeVar("_T")


class Target(Generic[_T]):
    """A model by name and version, with what `prepare` makes of it; None for one that it does not want."""

    def __init__(
        self, service: Service, name: str, version: str | None, prepare: Callable[[Hosted], _T | None]
    ) -> None:
        self._service, self._name, self._version, self._prepare = service, name, version, prepare
        self._seen = -1
        self._found: tuple[Hosted, _T] | None = None

    def find(self) -> tuple[Hosted, _T] | None:
        """Return both, None where they are not wanted. Raises RequestError (404, 503) where there is no such model."""
        service = self._service
        if self._seen == service.changes and not service.stopping:
            return self._found
        seen = service.changes
        hosted = service.steady(self._name, self._version)
        if hosted is None:  # each request gets a version by its share
            return self._prepared(service.find(self._name, self._version))
        self._found = self._prepared(hosted)
        self._seen = seen
        return self._found

    def _prepared(self, hosted: Hosted) -> tuple[Hosted, _T] | None:
        prepared = self._prepare(hosted)
        return None if prepared is None else (hosted, prepared)
