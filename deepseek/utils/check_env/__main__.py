"""`python -m deepseek.utils.check_env [--json]`."""

from __future__ import annotations

import argparse
import sys

from deepseek.utils.check_env.check import run_check


def main() -> int:
    """Read the arguments, check, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deepseek.utils.check_env",
        description="Check this machine: versions, GPUs, CPU, memory, disk, ports, compilers, optional packages.",
        epilog="Exit code 1 if there is a problem, else 0.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return run_check(json=parser.parse_args().json)


if __name__ == "__main__":
    sys.exit(main())
