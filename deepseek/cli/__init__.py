"""The command line: `deepseek`. A command a verb; errors without a traceback; exit code 2 for wrong input, 1 else."""

from __future__ import annotations

from deepseek.cli.app import main

__all__ = ["main"]
