"""`deepseek serve` and `deepseek-serve`: models over HTTP and gRPC."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.folder import find_bundles, name_bundles

if TYPE_CHECKING:
    from deepseek.road.recipe import ServeConfig

_LISTEN, _ACCESS, _LIMITS, _RUN = "Where it listens", "Who may use it", "How much it takes on", "How it runs"


def _option(*names: str, help: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_Bundles = Annotated[
    list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Bundles to serve, each under its folder's name.")
]
_ModelDir = Annotated[
    Path | None, typer.Option("--model_dir", "--model-dir", help="A bundle, or a folder whose subfolders are bundles.")
]
_Host = Annotated[
    str | None,
    _option(
        "--host",
        help="The address. 0.0.0.0 lets other machines in: then an API key is needed.",
        panel=_LISTEN,
        show_default="the recipe's, or 127.0.0.1",
    ),
]
_Port = Annotated[
    int | None,
    _option(
        "--port",
        help="The port of REST and the page; 0 takes a free one.",
        panel=_LISTEN,
        show_default="the recipe's, or 8080",
    ),
]
_GrpcPort = Annotated[
    int | None,
    _option("--grpc_port", "--grpc-port", help="The port of gRPC; without it there is no gRPC.", panel=_LISTEN),
]
_TlsCert = Annotated[
    Path | None, _option("--tls-cert", help="Certificate and its chain, PEM: https, and gRPC over TLS.", panel=_LISTEN)
]
_TlsKey = Annotated[Path | None, _option("--tls-key", help="The certificate's private key, PEM.", panel=_LISTEN)]
_AllowedHost = Annotated[
    list[str] | None,
    _option("--allowed-host", help="A further name that clients may call this server by.", panel=_LISTEN),
]
_ApiKey = Annotated[
    str | None,
    _option(
        "--api-key",
        envvar="DEEPSEEK_API_KEY",
        help="One key for all clients. Give it in the variable: everyone here can read a command line.",
        panel=_ACCESS,
    ),
]
_ApiKeys = Annotated[
    Path | None,
    _option("--api-keys", help="A file of hashed keys, one a line; read again when it changes.", panel=_ACCESS),
]
_NewKey = Annotated[
    str | None,
    _option(
        "--new-key",
        metavar="NAME",
        help="Make a key, print it once, add its hash to --api-keys (or print the line), and end.",
        panel=_ACCESS,
    ),
]
_Insecure = Annotated[bool, _option("--insecure", help="Listen beyond this machine without any key.", panel=_ACCESS)]
_AuditLog = Annotated[
    Path | None, _option("--audit-log", help="A file that gets one line of JSON for each request.", panel=_ACCESS)
]
_LogPrompts = Annotated[bool, _option("--log-prompts", help="Write prompts into the audit log too.", panel=_ACCESS)]
_AllowUrlHost = Annotated[
    list[str] | None,
    _option(
        "--allow-url-host",
        help="A host whose URLs may stand in requests in place of content; without it none is fetched.",
        panel=_ACCESS,
    ),
]
_Rate = Annotated[
    int | None,
    _option("--rate", help="Requests a minute for each key (without keys: each address).", panel=_LIMITS, min=1),
]
_Concurrent = Annotated[
    int | None, _option("--concurrent", help="Requests that each may have open at once.", panel=_LIMITS, min=1)
]
_Weights = Annotated[
    str,
    _option(
        "--weights",
        help="Weights of language models: auto, fp32, bf16, int8, int4 (fewer bits: faster, a little less exact).",
        panel=_RUN,
    ),
]
_Engine = Annotated[
    str,
    _option(
        "--engine",
        help="What generates the answers of language models: own, vllm (CUDA, installed by yourself), or auto.",
        panel=_RUN,
    ),
]
_AllowAdmin = Annotated[
    bool,
    _option("--allow-admin", help="Let clients load and unload the models of --model_dir (KServe v2).", panel=_ACCESS),
]
_MaxActive = Annotated[
    int, _option("--max-active", help="Answers that each language model generates side by side.", panel=_LIMITS)
]
_MaxConnections = Annotated[int, _option("--max-connections", help="Connections that may be open.", panel=_LIMITS)]
_Device = Annotated[str, _option("--device", help="Where the models run: auto, cpu, cuda, cuda:1, ...", panel=_RUN)]
_Workers = Annotated[
    int,
    _option(
        "--workers",
        help="Processes on the same port, each with its own copy of the models; one that dies or hangs is replaced.",
        panel=_RUN,
        min=1,
    ),
]
_Supervise = Annotated[
    bool, _option("--supervise", help="Have a parent replace the process when it dies, also with one.", panel=_RUN)
]
_Spare = Annotated[
    bool,
    _option(
        "--spare/--no-spare",
        help="With workers: keep a process standing by that takes a dead one's place at once.",
        panel=_RUN,
    ),
]
_Watch = Annotated[
    bool, _option("--watch", help="Load bundles that appear or change in --model_dir while it runs.", panel=_RUN)
]
_Drain = Annotated[
    float, _option("--drain", help="Seconds that running requests may go on after SIGTERM.", panel=_RUN, min=0)
]
_CacheMb = Annotated[
    int | None,
    _option(
        "--cache-mb",
        help="Memory for answers that are asked for again; 0 keeps none.",
        panel=_LIMITS,
        min=0,
        show_default="0, with Redis 64",
    ),
]
_RedisUrl = Annotated[
    str | None,
    _option(
        "--redis-url",
        envvar="DEEPSEEK_REDIS_URL",
        help="A Redis server that processes share cached answers and conversations in.",
        panel=_RUN,
    ),
]
_Trace = Annotated[
    str | None,
    _option("--trace", metavar="URL", help="Send traces to this OpenTelemetry collector (OTLP/HTTP).", panel=_RUN),
]


def serve_command(
    bundles: _Bundles = None,
    model_dir: _ModelDir = None,
    host: _Host = None,
    port: _Port = None,
    grpc_port: _GrpcPort = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    allowed_host: _AllowedHost = None,
    api_key: _ApiKey = None,
    api_keys: _ApiKeys = None,
    new_key: _NewKey = None,
    insecure: _Insecure = False,
    audit_log: _AuditLog = None,
    log_prompts: _LogPrompts = False,
    allow_url_host: _AllowUrlHost = None,
    allow_admin: _AllowAdmin = False,
    rate: _Rate = None,
    concurrent: _Concurrent = None,
    max_active: _MaxActive = 8,
    max_connections: _MaxConnections = 512,
    device: _Device = "auto",
    weights: _Weights = "auto",
    engine: _Engine = "auto",
    workers: _Workers = 1,
    supervise: _Supervise = False,
    spare: _Spare = True,
    watch: _Watch = False,
    drain: _Drain = 20.0,
    cache_mb: _CacheMb = None,
    redis_url: _RedisUrl = None,
    trace: _Trace = None,
) -> None:
    """Serve models over REST and gRPC, with a page to try them, until Ctrl-C or SIGTERM.

    Any OpenAI client works with base_url=http://127.0.0.1:8080/v1, any KServe v2 client with the URL itself.
    /health and /ready are for probes, /metrics for Prometheus. SIGHUP reads keys, certificate and bundles again.
    """
    from deepseek.serve.monitoring.tracing import TracingOptions
    from deepseek.serve.options import Safety, ServerLimits
    from deepseek.serve.server import serve
    from deepseek.serve.state.options import StateOptions

    if new_key is not None:
        _make_key(new_key, api_keys, rate)
        return
    paths = _named(bundles, model_dir)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    wish = _wish_of_recipe(paths)
    safety = Safety(
        api_key=api_key or None,
        api_keys=api_keys,
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        requests_per_minute=rate,
        concurrent=concurrent,
        audit_log=audit_log,
        log_prompts=log_prompts,
        allow_url_hosts=tuple(allow_url_host or ()),
    )
    limits: Any = dict(max_active=max_active, max_connections=max_connections, weights=weights, engine=engine)
    serve(
        paths,
        wish.host if host is None else host,
        wish.port if port is None else port,
        on_ready=lambda listening: typer.echo(f"{listening} (Ctrl-C stops)"),
        workers=workers if workers > 1 or supervise else None,
        grpc_port=grpc_port,
        device=device,
        folder=model_dir,
        watch=watch,
        allow_admin=allow_admin,
        spare=spare,
        limits=ServerLimits(**limits, drain_seconds=drain),
        state=StateOptions(cache_bytes=None if cache_mb is None else cache_mb << 20, redis_url=redis_url or None),
        tracing=TracingOptions(endpoint=trace) if trace else None,
        safety=safety,
    )


def _named(bundles: list[Path] | None, model_dir: Path | None) -> dict[str, Path]:
    """Return the bundles to serve by name. Raises ConfigError where they are named twice, or not at all."""
    if (not bundles) == (model_dir is None):
        raise ConfigError(
            "what to serve is named twice" if bundles else "nothing to serve",
            wanted="bundles, or --model_dir",
            fix="deepseek serve BUNDLE, or deepseek-serve --model_dir DIR",
        )
    return name_bundles(bundles) if bundles else find_bundles(model_dir or Path())


def _make_key(name: str, path: Path | None, rate: int | None) -> None:
    """Print a new key once; its line goes into the file, or to standard output where there is none."""
    from deepseek.serve.security.keys import KeyRing, new_key, parse_keys

    key, line = new_key(name, rate)
    if path is None:
        typer.echo(f"the key, told only now: {key}", err=True)
        typer.echo(line)
        return
    if path.exists() and path.stat().st_size:
        KeyRing.read(path)  # a file that is wrong already is told before it is added to
        before = path.read_text(encoding="utf-8")
        parse_keys([*before.splitlines(), line], str(path))
        line = line if before.endswith("\n") else "\n" + line
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        file.write(line + "\n")
    typer.echo(f"the key, told only now: {key}")


def _wish_of_recipe(paths: dict[str, Path]) -> ServeConfig:
    """Return the serve section of the run that all the bundles are in, or the defaults."""
    from deepseek.road.recipe import ServeConfig, read_recipe

    runs = {path.resolve().parent for path in paths.values()}
    recipe = next(iter(runs)) / "recipe.yaml"
    if len(runs) > 1 or not recipe.is_file():
        return ServeConfig()
    return read_recipe(recipe).serve or ServeConfig()


def main() -> None:
    """Run `deepseek-serve`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(name="deepseek-serve")(serve_command)
    try:
        app()
    except DeepSeekError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
