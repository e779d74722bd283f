"""The server over gRPC: the open inference protocol, streaming text, health and reflection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "RpcLimits": "deepseek.serve.rpc.server:RpcLimits",
    "RpcServer": "deepseek.serve.rpc.server:RpcServer",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.serve.rpc.server import RpcLimits as RpcLimits
    from deepseek.serve.rpc.server import RpcServer as RpcServer
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
