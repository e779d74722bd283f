"""The model that many requests go to, found once and again only after a change.

It is held weakly: a connection that nobody uses must not keep an unloaded model's weights.
Not here: which model it is (see `deepseek.serve.registry`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import ReferenceType, ref

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.service import Service

_T = TypeVar("_T")


class Target(Generic[_T]):
    """A model by name and version, with what `prepare` finds for it, which lives as long as the model does.

    `prepare` returns None for a model that is not wanted.
    """

    def __init__(
        self, service: Service, name: str, version: str | None, prepare: Callable[[Hosted], _T | None]
    ) -> None:
        self._service, self._name, self._version, self._prepare = service, name, version, prepare
        self._seen = -1
        self._found: tuple[ReferenceType[Hosted], ReferenceType[_T]] | None = None

    def find(self) -> tuple[Hosted, _T] | None:
        """Return both, None where they are not wanted. Raises RequestError (404, 503) where there is no such model."""
        service, found = self._service, self._found
        if self._seen == service.changes and not service.stopping:
            if found is None:
                return None
            hosted, prepared = found[0](), found[1]()
            if hosted is not None and prepared is not None:
                return hosted, prepared
        seen = service.changes
        steady = service.steady(self._name, self._version)
        if steady is None:  # each request gets a version by its share
            return self._prepared(service.find(self._name, self._version))
        both = self._prepared(steady)
        self._found = None if both is None else (ref(both[0]), ref(both[1]))
        self._seen = seen
        return both

    def _prepared(self, hosted: Hosted) -> tuple[Hosted, _T] | None:
        prepared = self._prepare(hosted)
        return None if prepared is None else (hosted, prepared)
