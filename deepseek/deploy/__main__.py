"""`python -m deepseek.deploy --model_path DIR --device cuda:0`: serve a model at once, on this machine.

The same server as `deepseek serve` (which has more options). Not here: files for containers (`deepseek deploy`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from deepseek.deploy.plan import API_KEY, DEVICE
from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.folder import find_bundles


def serve_at_once(
    model_path: Annotated[
        Path, typer.Option("--model_path", "--model-path", help="A bundle, a run folder, or a folder of bundles.")
    ],
    device: Annotated[str, typer.Option(help="Where the models run: auto, cpu, cuda, cuda:0, ...")] = "auto",
    host: Annotated[
        str, typer.Option(help="The address; 0.0.0.0 lets other machines in, and needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port of REST and the page; 0 takes a free one.")] = 8080,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc_port", "--grpc-port", help="The port of gRPC; without it there is no gRPC.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=API_KEY, help="The clients' key. Better in the variable: others see commands.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without any key.")] = False,
) -> None:
    """Serve models over REST and gRPC, with a page to try them, until Ctrl-C or SIGTERM."""
    from deepseek.hardware import resolve_device
    from deepseek.serve.options import Safety
    from deepseek.serve.server import serve

    if not DEVICE.fullmatch(device):
        raise ConfigError("unknown device", found=repr(device), wanted="auto, cpu, cuda or cuda:0")
    resolve_device(device)  # a device that is not here is told before anything is loaded
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    inner = model_path / "bundle"
    serve(
        find_bundles(inner if (inner / "config.yaml").is_file() else model_path),
        host,
        port,
        on_ready=lambda listening: typer.echo(f"{listening} (Ctrl-C stops)"),
        grpc_port=grpc_port,
        device=device,
        safety=Safety(api_key=api_key or None, insecure=insecure),
    )


def main() -> None:
    """Run `python -m deepseek.deploy`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="python -m deepseek.deploy")(serve_at_once)
    try:
        app()
    except DeepSeekError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


if __name__ == "__main__":
    main()
