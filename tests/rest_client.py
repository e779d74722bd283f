"""The HTTP interface in this process, without a socket: `with client_of({...}) as client`. For tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.testclient import TestClient

from deepseek.serve import Service, create_app


@contextlib.contextmanager
def client_of(models: Mapping[str, Any], **options: Any) -> Iterator[TestClient]:
    """Yield a client of an application that is ready."""
    checked = threading.Event()
    service = Service(models)
    app = create_app(service, on_checked=lambda problem: checked.set(), **options)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert checked.wait(10)
        yield client
