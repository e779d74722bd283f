"""What all tests share: one compute thread each, an environment without surprises, the folder of real data.

Tests that need something this machine may lack (real data, a browser) skip and say what was missing; `pytest -rs`,
which `make test` uses, lists them.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded; processes that tests start inherit it
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

SCRUBBED = (
    "COLUMNS",
    "CUDA_VISIBLE_DEVICES",
    "FORCE_COLOR",
    "GLIBC_TUNABLES",
    "LINES",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NO_COLOR",
    "PYTHONWARNINGS",
    "RANK",
    "WORLD_SIZE",
)
SCRUBBED_PREFIXES = ("DEEPSEEK_", "HF_", "KUBERNETES_", "OMPI_", "PMI_", "SLURM_", "TORCH", "TRANSFORMERS_")
KEPT = {"DEEPSEEK_TEST_DATA"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Take away what the caller's shell or cluster set; caches go to a folder of this run, the network stays unused."""
    for name in list(os.environ):
        if name not in KEPT and (name in SCRUBBED or name.startswith(SCRUBBED_PREFIXES)):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Start every test from the same seeds, whatever ran before it in this process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """Give the package's logger its level back: the command line, run in this process, sets it."""
    logger = logging.getLogger("deepseek")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of public data sets that $DEEPSEEK_TEST_DATA names, or skip."""
    value = os.environ.get("DEEPSEEK_TEST_DATA", "")
    if not value:
        pytest.skip("DEEPSEEK_TEST_DATA is not set: no folder of real data")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"DEEPSEEK_TEST_DATA={value} is not a folder")
    return folder
