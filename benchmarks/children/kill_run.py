"""Kills one contestant of `kill_anywhere` again and again, counts what goes wrong, and times how fast it is back.

`python -m benchmarks.children.kill_run MODULE KILLS TIMED RESULT`. Runs of 40 steps with a checkpoint every second step
are killed by SIGKILL at random moments (uniform over the time a whole run takes, seeded) and resumed until done. A
resume that fails is helped as an operator would: the newest checkpoint is removed by hand, and it is tried again.
The figure is the median of TIMED measured returns of a larger network: seconds from the start of the process that
resumes (its imports done) to its first step that the killed one had not done yet. Each contestant saves as often as
costs it 5% of the time of training: what saves cost is measured first, with and without.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children.kill_case import Case
from benchmarks.lives import Death, Nursery

SMALL: dict[str, Any] = {"steps": 40, "every": 2, "width": 32, "time": 32}
LARGE: dict[str, Any] = {"width": 1536, "time": 16}
"""9.6M weights, 115 MB with AdamW's states."""
NEVER = 1 << 30
SHARE = 0.05
"""What saving may cost of the time of training."""
TRIAL_STEPS, TRIAL_EVERY = 40, 8


@dataclass
class Count:
    """What was seen. `failed`: resumes that ended in an error; `by_hand`: checkpoints removed to help them."""

    kills: int = 0
    resumes: int = 0
    failed: int = 0
    by_hand: int = 0
    runs: int = 0
    other_weights: int = 0
    hung: int = 0
    step_seconds: float = 0.0
    save_seconds: float = 0.0
    save_every: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Killer:
    """One contestant's runs, one after the other."""

    def __init__(self, module: str, nursery: Nursery, folder: Path) -> None:
        self._module = importlib.import_module(module)
        self._nursery = nursery
        self._folder = folder
        self._chance = random.Random("kill anywhere")  # noqa: S311
        self.count = Count()

    def prepare(self) -> None:
        """Let it train undisturbed: for what it imports late, for the weights it ends with, for the time it takes."""
        self._nursery.prepare({**SMALL, "folder": str(self._folder / "first")})
        whole = self._case("whole", SMALL)
        death = self._live(whole)
        self._weights = weights_of(whole)
        self._seconds = death.died - death.born
        if death.code != 0:
            raise SystemExit(f"an undisturbed run failed: {death.log[-1500:]}")

    def kill(self, times: int) -> None:
        """Kill runs until there were so many kills, and let the last one come to its end."""
        while self.count.kills < times:
            self.count.runs += 1
            case = self._case(f"run{self.count.runs}", SMALL)
            while not self._one_life(case, times):
                pass
            self.count.other_weights += weights_of(case) != self._weights
            shutil.rmtree(case.folder, ignore_errors=True)

    def time(self, times: int) -> None:
        """Kill larger runs between two checkpoints, and measure how long a new process takes to a step never done."""
        every = self.count.save_every = self._affordable_interval()
        for number in range(times):
            dies_at = every + 1 + int((number + 0.5) / times * every)
            case = self._case(f"timed{number}", {**LARGE, "steps": dies_at + 2, "every": every})
            self._live(case, die_at=dies_at)
            before = len(steps_of(case))
            death = self._live(case)
            new = [when for step, when in steps_of(case)[before:] if step > dies_at]
            if death.code == 0 and new:
                self.count.seconds.append(new[0] - death.born)
            shutil.rmtree(case.folder, ignore_errors=True)

    def _affordable_interval(self) -> int:
        """Return the steps between checkpoints that cost `SHARE` of the time of training."""
        needed = self._needed_interval(TRIAL_EVERY)
        if needed < TRIAL_EVERY:  # saves that close to each other may have to wait for each other
            needed = max(needed, self._needed_interval(needed))
        return needed

    def _needed_interval(self, every: int) -> int:
        """Return the interval at which saves cost `SHARE`, by runs with one each `every` steps and without, in turn."""
        totals: dict[int, list[float]] = {every: [], NEVER: []}
        for number in range(4):
            chosen = (every, NEVER)[number % 2]
            case = self._case(f"trial{every}-{number}", {**LARGE, "steps": TRIAL_STEPS + 1, "every": chosen})
            self._live(case)
            stamps = [when for _, when in steps_of(case)]
            totals[chosen].append(stamps[TRIAL_STEPS] - stamps[0])
            shutil.rmtree(case.folder, ignore_errors=True)
        fewest = {chosen: min(seconds) for chosen, seconds in totals.items()}
        self.count.step_seconds = fewest[NEVER] / TRIAL_STEPS
        self.count.save_seconds = max(0.0, fewest[every] - fewest[NEVER]) / (TRIAL_STEPS // every)
        return max(1, math.ceil(self.count.save_seconds / (SHARE * self.count.step_seconds)))

    def _one_life(self, case: Case, times: int) -> bool:
        """Live until killed or done; return whether the run is done."""
        resumes = self._module.newest(case) is not None
        self.count.resumes += resumes
        last = self.count.kills >= times
        death = self._live(case, None if last else self._chance.uniform(0, self._seconds))
        if death.killed:
            self.count.kills += 1
        elif death.code != 0:
            self.count.failed += resumes
            self.count.hung += death.code == -14
            self.count.errors.append(death.log.strip().splitlines()[-1][:200] if death.log.strip() else "no word")
            self._help(case)
        return death.code == 0

    def _help(self, case: Case) -> None:
        newest = self._module.newest(case)
        if newest is None:
            return
        self.count.by_hand += 1
        shutil.rmtree(newest) if Path(newest).is_dir() else Path(newest).unlink()

    def _live(self, case: Case, kill_after: float | None = None, die_at: int | None = None) -> Death:
        options = {"folder": str(case.folder), "steps": case.steps, "every": case.every}
        options |= {"width": case.width, "time": case.time, "die_at": die_at}
        return self._nursery.live(options, kill_after=kill_after)

    def _case(self, name: str, size: dict[str, Any]) -> Case:
        return Case(self._folder / name, **size)


def weights_of(case: Case) -> str:
    """Return the SHA-256 of the weights that a run ended with; empty where it did not."""
    path = case.folder.with_suffix(".done")
    return path.read_text() if path.exists() else ""


def steps_of(case: Case) -> list[tuple[int, float]]:
    """Return the steps that were done, over all lives, with the monotonic seconds."""
    path = case.folder.with_suffix(".steps")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), float(when)) for step, when in (line.split() for line in lines)]


def main(argv: list[str]) -> None:
    """Run `MODULE KILLS TIMED RESULT`."""
    module, kills, timed, result = argv
    with tempfile.TemporaryDirectory(prefix="bench-kill-") as folder:
        with Nursery(module, Path(folder) / "log") as nursery:
            killer = Killer(module, nursery, Path(folder))
            killer.prepare()
            killer.kill(int(kills))
            killer.time(int(timed))
    count = killer.count
    details = {name: value for name, value in vars(count).items() if name != "errors"}
    details["errors"] = {error: count.errors.count(error) for error in sorted(set(count.errors))}
    value = statistics.median(count.seconds) if count.seconds else float("nan")
    Path(result).write_text(json.dumps({"value": value, "outputs": {}, "details": details}))


if __name__ == "__main__":
    main(sys.argv[1:])
