"""A long day for the server: 10,000 requests, good, wrong and broken off, after a warm-up of 2,000.

`python -m benchmarks.serve_soak [--json] [--quick]` (`--quick`: 1,000; `--requests N`). The target is an absolute one:
resident memory grows by less than 2% after the warm-up, and threads and open descriptors stay what they were.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options

LIMIT_PERCENT = 2.0
_MOST_DESCRIPTORS = 4
"""Connections of the warm-up that close a moment later."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_soak", description=__doc__)
    parser.add_argument("--requests", type=int, help="requests after the warm-up (default 10000, with --quick 1000)")
    options, found = parse_options(parser, argv, rounds=1, quick_rounds=1)
    requests = found.requests or (1000 if options.quick else 10_000)
    announce(f"serve_soak: growth of memory over {requests} requests, percent", options)
    match = Match(
        [Contestant("server", ("-m", "benchmarks.children.soak_run", str(requests)), "ours")],
        higher_is_better=False,
        timeout=3600.0,
    )
    match.play(options.rounds)
    for run in match.runs["server"]:
        print(f"  {run.details}")
    ours = match.summary("server")
    growth = None if ours is None else ours.median
    checks = [failure_check(match)]
    for run in match.runs["server"]:
        checks += checks_of(run.details)
    ratio = None if growth is None else LIMIT_PERCENT / growth
    return finish(match, Outcome("serve_soak", "% of memory", growth, {}, ratio, ratio, 1.0, tuple(checks)), options)


def checks_of(details: dict[str, Any]) -> list[Check]:
    """Return whether a run held no more threads and descriptors than before, never failed, and ended well."""
    threads = details["after"]["threads"] - details["before"]["threads"]
    descriptors = details["after"]["descriptors"] - details["before"]["descriptors"]
    failures = sum(count for status, count in details["statuses"].items() if int(status) >= 500)
    return [
        Check("threads more", threads, "<= 0", threads <= 0),
        Check("descriptors more", descriptors, f"<= {_MOST_DESCRIPTORS}", descriptors <= _MOST_DESCRIPTORS),
        Check("answers of 500 and above", failures, 0, failures == 0),
        Check("exit code", details["exit_code"], 0, details["exit_code"] == 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
