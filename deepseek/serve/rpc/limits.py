"""How much the gRPC server takes on, as options. Not here: what is done about it (see `server`, `calls`)."""

from __future__ import annotations

from pydantic import Field

from deepseek.config import Config


class RpcLimits(Config):
    """How much the gRPC server takes on."""

    max_message_bytes: int = Field(16 << 20, ge=1024, le=1 << 30)
    """Bytes of the longest message that is read, after decompression too; a longer one gets RESOURCE_EXHAUSTED."""
    max_calls: int = Field(256, ge=1, le=65_536)
    """Calls at once, and as many calls for health beside them; one more gets RESOURCE_EXHAUSTED."""
    max_calls_per_connection: int = Field(100, ge=1, le=65_536)
    """Calls at once on one connection; further ones wait at the client."""
    max_connections: int = Field(512, ge=1, le=65_536)
    """Open connections; one more is closed."""
    idle_seconds: float = Field(300.0, gt=0, le=86_400)
    """How long a stream may stay open without a question."""
    ping_seconds: float = Field(10.0, gt=0, le=3600)
    """A client may send keepalive pings this often; one that sends more is told to go away (ENHANCE_YOUR_CALM)."""
    allow_admin: bool = False
    """Whether clients may list, load and unload models (the Repository calls)."""
    reuse_port: bool = False
    """Whether several processes may listen on one port (workers under a supervisor)."""
