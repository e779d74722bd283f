"""The `deepseek` program: its commands, and how their errors and logs reach a terminal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deepseek import __version__
from deepseek.cli.compress import compress
from deepseek.cli.cook import cook
from deepseek.cli.deploy import deploy
from deepseek.cli.estimate import estimate
from deepseek.cli.look import check_env, explain, new
from deepseek.cli.models import models
from deepseek.cli.serve import serve_command
from deepseek.cli.stages import evaluate, export
from deepseek.cli.training import quickstart, run, train
from deepseek.cli.verify import verify_trainer
from deepseek.cli.verify_bundle import verify_bundle
from deepseek.errors import ConfigError, DeepSeekError

app = typer.Typer(
    help="From raw data to a measured, served model: train, compress, evaluate, export, serve.",
    epilog="Start with: deepseek quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (quickstart, run, new, train, estimate, compress, evaluate, export, cook, explain):
    app.command()(command)
app.command("serve")(serve_command)
app.command("verify")(verify_bundle)
app.command("verify-trainer")(verify_trainer)
app.command("check-env")(check_env)
app.add_typer(models, name="models")
app.add_typer(deploy, name="deploy")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is done and why.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("deepseek").setLevel(level)


def main() -> None:
    """Run the command line."""
    console = Console(stderr=True, highlight=False)
    try:
        app(prog_name="deepseek")
    except DeepSeekError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt:
        console.print("stopped")
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; there is nobody to tell
        raise SystemExit(1) from None
