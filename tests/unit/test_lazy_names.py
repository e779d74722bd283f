"""Names that resolve at first use, and imports below `deepseek` that name a torch module."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributions.normal

import deepseek as ds
from deepseek.errors import MissingExtraError
from deepseek.lazy import lazy_names, load, require

ROOT = Path(__file__).parents[2]


def run_fresh(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


def test_a_module_of_torch_is_the_same_object_by_attribute() -> None:
    assert ds.nn.Linear is torch.nn.Linear
    assert ds.nn.functional is torch.nn.functional
    assert ds.utils.data.DataLoader is torch.utils.data.DataLoader
    assert ds.distributions is torch.distributions
    assert ds.float32 is torch.float32


def test_a_module_of_torch_is_the_same_object_by_import() -> None:
    for name in (
        "nn.functional",
        "nn.modules.linear",
        "utils.data.distributed",
        "cuda.amp",
        "autograd.functional",
        "distributions.normal",
    ):
        module = importlib.import_module(f"deepseek.{name}")
        assert module is importlib.import_module(f"torch.{name}")
        assert module.__name__ == f"torch.{name}"
        assert module.__spec__ is not None and module.__spec__.name == f"torch.{name}"


def test_imports_of_torch_paths_load_no_second_copy() -> None:
    program = """
from deepseek.nn.modules.linear import Linear
from deepseek.utils.data.distributed import DistributedSampler
import deepseek as ds, torch
assert Linear is torch.nn.Linear is ds.nn.Linear
assert DistributedSampler is torch.utils.data.DistributedSampler
"""
    assert run_fresh(program).stderr == ""


def test_an_import_that_neither_has_names_our_module() -> None:
    for name in ("deepseek.nosuch", "deepseek.nn.nosuch"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            importlib.import_module(name)


def test_autograd_sample_of_the_documents() -> None:
    x = ds.tensor([2.0], requires_grad=True)
    y = x**3 + 5 * x
    y.backward()
    assert x.grad.item() == 17.0


def test_submodules_are_there_after_a_plain_import() -> None:
    program = "import deepseek as ds; print(ds.nn.Linear.__module__, ds.optim.__name__, ds.utils.check_env.__name__)"
    assert run_fresh(program).stdout.split() == [
        "torch.nn.modules.linear",
        "deepseek.optim",
        "deepseek.utils.check_env",
    ]


def test_an_unknown_name_gives_the_near_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tenssor'; did you mean 'tensor'") as caught:
        _ = ds.tenssor
    assert caught.value.name == "tenssor"
    with pytest.raises(AttributeError, match="'Linear'"):
        _ = ds.nn.Linaer


def test_dir_lists_ours_and_torchs() -> None:
    names = dir(ds)
    assert {"Trainer", "tensor", "save", "__version__"} <= set(names)
    assert names == sorted(names)


def test_a_table_comes_before_the_fallback_and_is_kept() -> None:
    get, listing = lazy_names("tests_lazy", {"join": "json:dumps"}, fallback="os.path")
    module = type(sys)("tests_lazy")
    sys.modules["tests_lazy"] = module
    try:
        import json
        import os.path

        assert get("join") is json.dumps
        assert module.join is json.dumps
        assert get("split") is os.path.split
        assert {"join", "split"} <= set(listing())
    finally:
        del sys.modules["tests_lazy"]


def test_a_hidden_name_is_not_looked_up_in_torch() -> None:
    result = run_fresh("import sys, deepseek; print(hasattr(deepseek, '__wrapped__'), 'torch' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


def test_load_returns_modules_and_attributes() -> None:
    assert load("math") is importlib.import_module("math")
    assert load("math:pi") == importlib.import_module("math").pi


def test_require_prints_the_install_line() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'deepseek-framework\[serve\]'") as caught:
        require("no_such_package_anywhere", "serve")
    assert caught.value.extra == "serve"


def test_require_lets_errors_inside_a_package_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency_anywhere") as caught:
        require("half_installed", "serve")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_broken_torch_does_not_stop_the_import() -> None:
    program = """
import sys
sys.modules['torch'] = None
import deepseek
print(deepseek.__version__)
try:
    import deepseek.nosuch
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run_fresh(program).stdout.split() == [ds.__version__, "deepseek.nosuch"]


def test_what_tells_another_host_of_an_import_is_kept_out():
    code = (
        "import sys; from deepseek.lazy import require; require('json', 'export'); "
        "assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
