"""check_env on machines with GPUs: what nvidia-smi and rocm-smi print, held against torch's build."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepseek.utils.check_env.check import collect
from deepseek.utils.check_env.finding import Finding
from deepseek.utils.check_env.machine import Output
from tests.fake_machine import machine, named

ROW = "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 9.0"
HEADER = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.15              Driver Version: 570.86.15      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""
QUERY = "nvidia-smi --query-gpu=index,name,driver_version,memory.total,compute_cap --format=csv,noheader,nounits"
LINKS = "nvidia-smi nvlink --status"
NVLINK = (
    "GPU 0: NVIDIA H100\n\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\nGPU 1: NVIDIA H100\n\t Link 0: 26.562 GB/s\n"
)
NO_DRIVER = {
    QUERY: Output(9, ""),
    "nvidia-smi": Output(9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
}
TORCH = {
    "version": "2.13.0+cu128",
    "cuda": "12.8",
    "nccl_built": [2, 27, 5],
    "nccl_loaded": [2, 27, 5],
    "gpus": ["NVIDIA H100 80GB HBM3"] * 2,
    "capabilities": [[9, 0]] * 2,
    "architectures": ["sm_75", "sm_80", "sm_90", "compute_90"],
}


def two_gpus(commands: dict[str, str | Output] | None = None, torch: dict[str, Any] | None = None) -> list[Finding]:
    """Return what is found on a machine with two GPUs, with changes."""
    usual: dict[str, str | Output] = {
        QUERY: f"0, {ROW}\n1, {ROW}\n",
        "nvidia-smi": HEADER,
        LINKS: NVLINK,
        "nvcc --version": "Cuda compilation tools, release 12.4, V12.4.131\n",
    }
    return collect(machine(commands={**usual, **(commands or {})}, torch={**TORCH, **(torch or {})}))


def test_a_good_gpu_machine_has_no_warning() -> None:
    findings = two_gpus()
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert named(findings, "NVIDIA GPUs").found == "2 x NVIDIA H100 80GB HBM3 (80 GiB, compute capability 9.0)"
    assert named(findings, "NVIDIA driver").found == "driver 570.86.15, up to CUDA 12.8; torch is built for CUDA 12.8"
    assert named(findings, "NVLink").found == "3 links, 80 GB/s in all"
    assert named(findings, "NCCL").found == "2.27.5"
    assert "GPU" not in {finding.name for finding in findings}


@pytest.mark.parametrize(
    ("name", "status", "said", "commands", "torch"),
    [
        ("NVIDIA driver", "problem", "CUDA 13.0", {}, {"cuda": "13.0"}),
        ("torch on GPU", "problem", "not built for CUDA", {}, {"cuda": None, "gpus": [], "nccl_built": None}),
        ("torch on GPU", "problem", "out of date", {}, {"gpus": [], "gpu_error": "the driver is out of date"}),
        ("torch on GPU", "warning", "1 of 2", {}, {"gpus": ["NVIDIA H100"], "capabilities": [[9, 0]]}),
        ("GPU architecture", "problem", "sm_90", {}, {"architectures": ["sm_75", "sm_80"]}),
        ("NCCL", "warning", "2.18.3 is loaded", {}, {"nccl_loaded": [2, 18, 3]}),
        ("CUDA toolkit", "warning", "nvcc 11.8", {"nvcc --version": "release 11.8, V11.8.89"}, {}),
        ("NVLink", "warning", "1 links up, 1 down", {LINKS: "Link 0: 25 GB/s\nLink 1: <inactive>\n"}, {}),
        ("NVLink", "ok", "PCIe", {LINKS: Output(1, "")}, {}),
        ("NVIDIA driver", "problem", "couldn't communicate", NO_DRIVER, {}),
    ],
)
def test_nvidia_troubles(name: str, status: str, said: str, commands: dict[str, Any], torch: dict[str, Any]) -> None:
    finding = named(two_gpus(commands, torch), name)
    assert finding.status == status
    assert said in finding.found
    assert status == "ok" or (finding.why and finding.fix)


def test_code_for_an_older_gpu_of_the_same_generation_serves() -> None:
    for architectures in (["sm_80"], ["sm_75", "compute_75"]):
        torch = {"capabilities": [[8, 6]] * 2, "architectures": architectures}
        assert "GPU architecture" not in {finding.name for finding in two_gpus(torch=torch)}


def test_a_newer_minor_version_of_cuda_runs_on_the_driver_of_its_generation() -> None:
    assert named(two_gpus(torch={"cuda": "12.9"}), "NVIDIA driver").status == "ok"


def test_one_gpu_has_no_links_to_look_at() -> None:
    assert "NVLink" not in {finding.name for finding in two_gpus({QUERY: f"0, {ROW}\n"}, {"gpus": ["x"]})}


def test_a_gpu_without_its_driver_is_seen_on_the_bus() -> None:
    line = "65:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)\n"
    finding = named(collect(machine(commands={"lspci": line})), "GPU driver")
    assert finding.status == "problem"
    assert "H100" in finding.found


ROCM_QUERY = "rocm-smi --showproductname --showmeminfo vram --showdriverversion --json"
ROCM = json.dumps(
    {
        "card0": {"Card Series": "AMD Instinct MI300X", "VRAM Total Memory (B)": str(192 * 2**30)},
        "system": {"Driver version": "6.10.5"},
    }
)


def one_amd(torch: dict[str, Any], installed: str = "6.4.1-42\n") -> list[Finding]:
    """Return what is found on a machine with one GPU of AMD."""
    files = {"/opt/rocm/.info/version": installed}
    facts = {
        "version": "2.13.0+rocm6.4",
        "hip": "6.4.43482",
        "gpus": ["AMD Instinct MI300X"],
        "capabilities": [[9, 4]],
        **torch,
    }
    return collect(machine(commands={ROCM_QUERY: ROCM}, torch=facts, files=files))


def test_a_good_amd_machine_has_no_warning() -> None:
    findings = one_amd({})
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert named(findings, "AMD GPUs").found == "1: AMD Instinct MI300X (192.0 GiB); driver 6.10.5"


@pytest.mark.parametrize(
    ("name", "status", "said", "torch", "installed"),
    [
        ("ROCm", "warning", "5.7.0", {}, "5.7.0\n"),
        ("torch on GPU", "problem", "not built for ROCm", {"hip": None, "gpus": []}, ""),
        ("torch on GPU", "problem", "can't use", {"gpus": [], "gpu_error": "permission denied"}, ""),
    ],
)
def test_amd_troubles(name: str, status: str, said: str, torch: dict[str, Any], installed: str) -> None:
    finding = named(one_amd(torch, installed), name)
    assert finding.status == status
    assert said in finding.found
    assert finding.why and finding.fix
