"""Ray Data as the engine: the same bytes as local processes, also after a kill, and errors that arrive whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_etl_restart import output_of, write_rows
from tests.system import child_environment

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="starts Ray"),
    pytest.mark.timeout(300),
]
_CHILD = """
import sys
import ray
from deepseek.data.etl import DataPipeline
from deepseek.errors import DataError

class Stop(Exception):
    pass

def stop(progress):
    if progress.stage == 3:
        raise Stop

def twice(row):
    return [row, {**row, "copy": 1}]

def broken(row):
    return {**row, "x": row["missing"]}

if __name__ == "__main__":
    folder = sys.argv[1]
    read = DataPipeline.read(folder + "/in.jsonl", block_bytes=8000)
    plan = read.dedup(key="text").flat_map(twice).split({"train": 0.8, "val": 0.2}, by="id").shuffle(seed=5)
    plan = plan.map(lambda row: {**row, "size": len(row["text"])})
    options = {"bad_rows": folder + "/bad.jsonl"}
    here = plan.write(folder + "/local").run(workers=1, **options)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    there = plan.write(folder + "/ray").run("ray", workers=1, **options)
    assert [vars(a) for a in here.steps[:-1]] == [vars(b) for b in there.steps[:-1]]
    assert there.rows_written == here.rows_written > 0 and there.bad == 1
    try:
        plan.write(folder + "/resumed").run("ray", workers=1, progress=stop, **options)
    except Stop:
        pass
    assert plan.write(folder + "/resumed").run(workers=1, **options).resumed_blocks > 0
    try:
        DataPipeline.read(folder + "/good.jsonl").map(broken).write(folder + "/no").run("ray", workers=1)
    except DataError as error:
        assert "good.jsonl:1: KeyError" in error.problem and "map(broken)" in error.problem, error
    else:
        raise SystemExit("no error")
    assert ray.is_initialized()
"""


def test_ray_writes_the_same_bytes_as_local_processes(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    (tmp_path / "good.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (tmp_path / "child.py").write_text(_CHILD, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path)]
    child = subprocess.run(command, env=child_environment(), capture_output=True, timeout=280)
    assert child.returncode == 0, child.stderr.decode()[-4000:]
    local = output_of(tmp_path / "local")
    assert len(local) > 4
    assert output_of(tmp_path / "ray") == local
    assert output_of(tmp_path / "resumed") == local
