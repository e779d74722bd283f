"""Serving bundles over REST and gRPC: engines without IO, thin adapters, monitoring and a page to try the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "BackgroundServer": "deepseek.serve.server:BackgroundServer",
    "Engine": "deepseek.serve.text.engine:Engine",
    "EngineLimits": "deepseek.serve.text.limits:EngineLimits",
    "Listening": "deepseek.serve.running:Listening",
    "RpcLimits": "deepseek.serve.rpc.server:RpcLimits",
    "RpcServer": "deepseek.serve.rpc.server:RpcServer",
    "Safety": "deepseek.serve.options:Safety",
    "ServerLimits": "deepseek.serve.options:ServerLimits",
    "ServerOptions": "deepseek.serve.options:ServerOptions",
    "Service": "deepseek.serve.service:Service",
    "TensorEngine": "deepseek.serve.tensor.engine:TensorEngine",
    "TensorModel": "deepseek.serve.tensor.model:TensorModel",
    "TextModel": "deepseek.serve.text.models:TextModel",
    "create_app": "deepseek.serve.rest.app:create_app",
    "find_bundles": "deepseek.serve.folder:find_bundles",
    "form_of": "deepseek.serve.forms:form_of",
    "serve": "deepseek.serve.server:serve",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.serve.folder import find_bundles as find_bundles
    from deepseek.serve.forms import form_of as form_of
    from deepseek.serve.options import Safety as Safety
    from deepseek.serve.options import ServerLimits as ServerLimits
    from deepseek.serve.options import ServerOptions as ServerOptions
    from deepseek.serve.rest.app import create_app as create_app
    from deepseek.serve.rpc.server import RpcLimits as RpcLimits
    from deepseek.serve.rpc.server import RpcServer as RpcServer
    from deepseek.serve.running import Listening as Listening
    from deepseek.serve.server import BackgroundServer as BackgroundServer
    from deepseek.serve.server import serve as serve
    from deepseek.serve.service import Service as Service
    from deepseek.serve.tensor.engine import TensorEngine as TensorEngine
    from deepseek.serve.tensor.model import TensorModel as TensorModel
    from deepseek.serve.text.engine import Engine as Engine
    from deepseek.serve.text.limits import EngineLimits as EngineLimits
    from deepseek.serve.text.models import TextModel as TextModel
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
