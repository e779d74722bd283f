"""Serving language models over HTTP: an engine without IO, OpenAI's interface, probes, metrics and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "BackgroundServer": "deepseek.serve.server:BackgroundServer",
    "Engine": "deepseek.serve.text.engine:Engine",
    "EngineLimits": "deepseek.serve.text.engine:EngineLimits",
    "ServerLimits": "deepseek.serve.server:ServerLimits",
    "Service": "deepseek.serve.service:Service",
    "TextModel": "deepseek.serve.text.models:TextModel",
    "create_app": "deepseek.serve.rest.app:create_app",
    "find_bundles": "deepseek.serve.folder:find_bundles",
    "serve": "deepseek.serve.server:serve",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.serve.folder import find_bundles as find_bundles
    from deepseek.serve.rest.app import create_app as create_app
    from deepseek.serve.server import BackgroundServer as BackgroundServer
    from deepseek.serve.server import ServerLimits as ServerLimits
    from deepseek.serve.server import serve as serve
    from deepseek.serve.service import Service as Service
    from deepseek.serve.text.engine import Engine as Engine
    from deepseek.serve.text.engine import EngineLimits as EngineLimits
    from deepseek.serve.text.models import TextModel as TextModel
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
