"""The cooker's memory stays flat, whatever the input's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system import child_environment
from tests.unit.test_cooker_run import records, write

_CHILD = """
import json, resource, sys
from deepseek.data.cooker import CookerConfig, DataCooker
if __name__ == "__main__":
    config = CookerConfig(duplicates={"method": "exact"}, block_documents=20)
    DataCooker(config, workers=1).run(sys.argv[1], sys.argv[2])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    peaks = []
    for times in (1, 5):
        rows = [row for seed in range(times) for row in records(60, seed)]
        for number, row in enumerate(rows):
            row["pad"] = str(number % 10) * 20_000
        source = write(tmp_path / f"in{times}.jsonl", rows)
        command = [sys.executable, "-c", _CHILD, str(source), str(tmp_path / f"out{times}.jsonl")]
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=100, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] * 1.15, peaks
