"""`deepseek serve BUNDLE` and `deepseek-serve --model_dir DIR`: serve language models over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.serve.folder import find_bundles, name_bundles

if TYPE_CHECKING:
    from deepseek.road.recipe import ServeConfig

_Bundles = Annotated[
    list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Bundles to serve, each under its folder's name.")
]
_ModelDir = Annotated[
    Path | None, typer.Option("--model_dir", "--model-dir", help="A bundle, or a folder whose subfolders are bundles.")
]
_Host = Annotated[
    str | None,
    typer.Option(
        help="The address to listen on; 0.0.0.0 lets other machines in.", show_default="the recipe's, or 127.0.0.1"
    ),
]
_Port = Annotated[int | None, typer.Option(help="The port; 0 takes a free one.", show_default="the recipe's, or 8080")]
_Device = Annotated[str, typer.Option(help="Where the models run: auto, cpu, cuda, cuda:1, ...")]
_ApiKey = Annotated[
    str | None, typer.Option(envvar="DEEPSEEK_API_KEY", help="Ask clients for this key. Better given in the variable.")
]
_AllowedHost = Annotated[
    list[str] | None, typer.Option("--allowed-host", help="A further name that clients may call this server by.")
]
_MaxActive = Annotated[int, typer.Option(help="Answers that each model generates side by side.")]


def serve_command(
    bundles: _Bundles = None,
    model_dir: _ModelDir = None,
    host: _Host = None,
    port: _Port = None,
    device: _Device = "auto",
    api_key: _ApiKey = None,
    allowed_host: _AllowedHost = None,
    max_active: _MaxActive = 8,
) -> None:
    """Serve language models with OpenAI's HTTP interface and a page to try them, until Ctrl-C or SIGTERM.

    Clients: any OpenAI client with base_url=http://127.0.0.1:8080/v1. Also /health, /ready and /metrics.
    """
    from deepseek.serve.server import ServerLimits, serve

    if (not bundles) == (model_dir is None):
        raise ConfigError(
            "what to serve is named twice" if bundles else "nothing to serve",
            wanted="bundles, or --model_dir",
            fix="deepseek serve BUNDLE, or deepseek-serve --model_dir DIR",
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    paths = name_bundles(bundles) if bundles else find_bundles(model_dir or Path())
    wish = _wish_of_recipe(paths)
    serve(
        paths,
        wish.host if host is None else host,
        wish.port if port is None else port,
        device=device,
        api_key=api_key or None,
        allowed_hosts=allowed_host or (),
        limits=ServerLimits(max_active=max_active),
        on_ready=lambda url: typer.echo(f"serving {', '.join(paths)} at {url} (Ctrl-C stops)"),
    )


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
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="deepseek-serve")(serve_command)
    try:
        app()
    except DeepSeekError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
