"""What a server can be told: limits, where it listens, and who may use it. Not here: what is done about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import Field

from deepseek.config import Config
from deepseek.errors import ConfigError
from deepseek.serve.monitoring.tracing import TracingOptions
from deepseek.serve.rest.door import Guard, hosts_for, is_loopback
from deepseek.serve.security.audit import AuditLog
from deepseek.serve.security.keys import KeyRing
from deepseek.serve.security.limits import RateLimiter
from deepseek.serve.security.rates import Rates
from deepseek.serve.security.tls import TlsFiles
from deepseek.serve.security.urls import Fetcher
from deepseek.serve.speech.limits import StreamLimits
from deepseek.serve.state.options import StateOptions
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.text.engine import EngineLimits

if TYPE_CHECKING:
    from deepseek.serve.seat import Seat

Models = Sequence[str | Path] | Mapping[str, Any]
"""Bundles (named after their folders), or names with bundles, TextModels or TensorModels."""


class ServerLimits(EngineLimits):
    """How much a server takes on."""

    drain_seconds: float = Field(20.0, ge=0, le=3600)
    """After SIGTERM, how long running requests may go on before they get 503."""
    max_connections: int = Field(512, ge=1, le=65536)
    """Open connections; one more gets 503."""


class Safety(Config):
    """Who may use a server, and what is written down about it."""

    api_key: str | None = Field(default=None, repr=False)
    """One key that clients must send; more of them, hashed, are in `api_keys`."""
    api_keys: Path | None = None
    """A file of hashed keys, one a line (`NAME: sha256:HEX`); it is re-read when it changes."""
    insecure: bool = False
    """Allow an address beyond this machine without any key."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names that clients may call the server by."""
    tls_cert: Path | None = None
    """The server's certificate and its chain, PEM."""
    tls_key: Path | None = None
    """The certificate's private key, PEM without a password."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    """Requests of one key (without keys: of one address) in a minute; more get 429."""
    burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests that may come at once within that rate; by default those of 10 seconds."""
    concurrent: int | None = Field(default=None, ge=1, le=65536)
    """Requests of one key (without keys: of one address) that may be open at once; more get 429."""
    audit_log: Path | None = None
    """A file that gets one line of JSON for each request."""
    audit_bytes: int = Field(default=64 << 20, ge=4096)
    """Size at which a new file is begun; five old ones are kept."""
    log_prompts: bool = False
    """Write prompts into the audit log too."""
    allow_url_hosts: tuple[str, ...] = ()
    """Hosts from which content named by URL is fetched; without any, none is."""

    def tls(self) -> TlsFiles | None:
        """Return the certificate, checked. Raises ConfigError."""
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ConfigError("a certificate needs its key", wanted="both --tls-cert and --tls-key")
        files = TlsFiles(self.tls_cert, self.tls_key)
        files.check()
        return files

    def keys(self, host: str) -> KeyRing | None:
        """Return the keys. Raises ConfigError for wrong ones, and for none where `host` is open to other machines."""
        if self.api_key is not None and self.api_keys is not None:
            raise ConfigError(
                "API keys are given twice", found="one key and a file of keys", fix="put all keys into the file"
            )
        if self.api_key is not None:
            return KeyRing.of_secret(self.api_key)
        if self.api_keys is not None:
            return KeyRing.read(self.api_keys)
        if not is_loopback(host) and not self.insecure:
            raise ConfigError(
                f"on {host} everyone who can reach this machine could use the models",
                wanted="an API key",
                fix="export DEEPSEEK_API_KEY=$(openssl rand -hex 32), or --api-keys FILE (deepseek serve --new-key "
                "NAME --api-keys FILE makes one), or --insecure where only friends can reach it",
            )
        return None

    def guard(self, host: str, seat: Seat | None = None) -> Guard:
        """Return what the gateway holds requests to, that of one worker among others too. Raises ConfigError."""
        keys = self.keys(host)
        limited = self.requests_per_minute is not None or self.concurrent is not None or self.api_keys is not None
        return Guard(
            hosts=hosts_for(host, self.allowed_hosts),
            keys=keys,
            limiter=self._limiter(None if seat is None else seat.rates) if limited else None,
            audit=self._audit(None if seat is None else seat.number),
            fetcher=Fetcher(self.allow_url_hosts),
            facts=None if seat is None else seat.facts,
        )

    def told(self, host: str, keys: KeyRing | None) -> str:
        """Return in a few words what protects the server."""
        words = [f"{len(keys)} API key{'s' * (len(keys) != 1)}" if keys else "no API key"]
        if keys is None:
            words[0] += " (this machine only)" if is_loopback(host) else " (INSECURE: open to the network)"
        words.append("TLS" if self.tls_cert else "no TLS")
        if self.requests_per_minute is not None:
            words.append(f"{self.requests_per_minute} requests/min")
        if self.concurrent is not None:
            words.append(f"{self.concurrent} at once")
        if self.audit_log is not None:
            words.append(f"audit log {self.audit_log}{' with prompts' * self.log_prompts}")
        return ", ".join(words)

    def _limiter(self, rates: Rates | None) -> RateLimiter:
        return RateLimiter(self.requests_per_minute, burst=self.burst, concurrent=self.concurrent, rates=rates)

    def _audit(self, worker: int | None) -> AuditLog | None:
        if self.audit_log is None:
            return None
        path = self.audit_log
        if worker is not None:  # each process rotates files of its own
            path = path.with_name(f"{path.stem}-{worker}{path.suffix}")
        return AuditLog(path, max_bytes=self.audit_bytes, log_prompts=self.log_prompts)


class ServerOptions(Config):
    """All of a server but its models."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """The port of HTTP; 0 takes a free one."""
    grpc_port: int | None = None
    """The port of gRPC; 0 takes a free one, None serves no gRPC."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:1 ..."""
    folder: Path | None = None
    """The folder that `watch` looks at, and in which further models are found by name."""
    watch: bool = False
    """Load bundles that appear or change in `folder` while the server runs."""
    allow_admin: bool = False
    """Let clients list, load and unload models (the repository routes of KServe v2)."""
    spare: bool = True
    """With workers: keep a process standing by, its libraries loaded, that takes a dead worker's place at once."""
    limits: ServerLimits = ServerLimits()
    """How much the server takes on."""
    tensor_limits: TensorLimits = TensorLimits()
    """How much the engine of each model that is no language model takes on."""
    stream_limits: StreamLimits = StreamLimits()
    """How much streams of speech may hold, and how many there may be."""
    state: StateOptions = StateOptions()
    """What it keeps between requests: answers, conversations."""
    tracing: TracingOptions | None = None
    """Where traces of requests go; None traces none."""
    safety: Safety = Safety()
    """Who may use it."""


class OptionWords(TypedDict, total=False):
    """Keyword arguments of `serve` and `BackgroundServer`: fields of ServerOptions, and two of Safety's."""

    grpc_port: int | None
    device: str
    folder: Path | None
    watch: bool
    allow_admin: bool
    spare: bool
    limits: ServerLimits | None
    tensor_limits: TensorLimits | None
    stream_limits: StreamLimits | None
    state: StateOptions | None
    tracing: TracingOptions | None
    safety: Safety | None
    api_key: str | None
    allowed_hosts: Collection[str]


def options_of(host: str, port: int, words: OptionWords) -> ServerOptions:
    """Return the options that keyword arguments make. Raises ConfigError for one that is unknown or wrong."""
    safety = words.get("safety") or Safety()
    if words.get("api_key") is not None:
        safety = safety.replace(api_key=words["api_key"])
    if words.get("allowed_hosts"):
        safety = safety.replace(allowed_hosts=(*safety.allowed_hosts, *words["allowed_hosts"]))
    rest = {name: value for name, value in words.items() if name not in ("safety", "api_key", "allowed_hosts")}
    given = {name: value for name, value in rest.items() if value is not None}
    options = ServerOptions(**{"host": host, "port": port, **given, "safety": safety})
    if options.watch and (options.folder is None or not options.folder.is_dir()):
        raise ConfigError(
            "there is no folder to watch", found=options.folder, wanted="a folder of bundles: --model_dir"
        )
    return options
