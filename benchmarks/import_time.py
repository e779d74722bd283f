"""How long `import deepseek` takes beyond an empty interpreter, beside torch, transformers and lightning.

`python -m benchmarks.import_time [--json] [--quick]`. Fresh processes; seconds, less is better.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.children.import_run import NOTHING
from benchmarks.harness import Contestant, Match
from benchmarks.scoreboard import Check, Outcome, announce, failure_check, finish, parse_options, quiet_check

LIMIT_SECONDS, LIMIT_MODULES = 0.10, 150
TARGET = 5.0
PEERS = ("torch", "transformers", "lightning")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time", description=__doc__)
    options, _ = parse_options(parser, argv, rounds=10, quick_rounds=4)
    announce("import_time: seconds over an empty interpreter", options)
    command = ("-m", "benchmarks.children.import_run")
    match = Match(
        [
            Contestant("deepseek", (*command, "deepseek"), "ours"),
            *[Contestant(name, (*command, name), "peer", needs=name) for name in PEERS],
            Contestant("empty interpreter", (*command, NOTHING), "reference"),
        ],
        higher_is_better=False,
        timeout=300,
    )
    match.play(options.rounds)
    return finish(match, verdict(match), options)


def verdict(match: Match) -> Outcome:
    """Return the outcome; the ratio is the best peer's seconds over ours."""
    ours, best = match.summary("deepseek"), match.best("peer")
    ratio = match.ratio("deepseek", best) if best else None
    modules = match.outputs("modules").get("deepseek")
    torch_loaded = match.outputs("loads_torch").get("deepseek")
    seconds = None if ours is None else ours.median
    checks = (
        failure_check(match),
        quiet_check(match),
        Check(
            "seconds over an empty interpreter",
            seconds,
            f"<= {LIMIT_SECONDS}",
            seconds is not None and seconds <= LIMIT_SECONDS,
        ),
        Check("modules loaded", modules, f"<= {LIMIT_MODULES}", modules is not None and modules <= LIMIT_MODULES),
        Check("torch is loaded", torch_loaded, "0", torch_loaded == 0),
    )
    return Outcome(
        name="import_time",
        unit="seconds over an empty interpreter, less is better",
        ours=seconds,
        peers={name: found.median for name in match.ranking("peer") if (found := match.summary(name))},
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        target=TARGET,
        checks=checks,
    )


if __name__ == "__main__":
    sys.exit(main())
