"""AMD: GPUs as `rocm-smi` shows them, and the ROCm installed here held against torch's HIP build.

Source: `rocm-smi --showproductname --showmeminfo vram --showdriverversion --json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from deepseek.utils.check_env.finding import Finding, gib, numbers, ok, problem, warning
from deepseek.utils.check_env.machine import Machine
from deepseek.utils.check_env.torch_facts import TorchFacts

QUERY = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")
VERSION_FILE = "/opt/rocm/.info/version"


def amd(machine: Machine, facts: TorchFacts) -> Iterator[Finding]:
    """Everything about AMD's GPUs; nothing where there are none."""
    cards, driver = _cards(machine.output(*QUERY))
    if not cards:
        return
    yield ok(
        "GPU", "AMD GPUs", f"{len(cards)}: {'; '.join(sorted(set(cards)))}" + (f"; driver {driver}" if driver else "")
    )
    yield from _usable(len(cards), facts)
    installed = (machine.read(VERSION_FILE) or "").strip()
    if installed and facts.hip:
        if numbers(installed)[:1] != numbers(facts.hip)[:1]:
            yield warning(
                "GPU",
                "ROCm",
                f"{installed}; torch is built for ROCm {facts.hip}",
                why="libraries of two ROCm generations in one process fail to load or crash",
                fix=f"install ROCm {numbers(facts.hip)[0]}, or the torch build for ROCm {numbers(installed)[0]}",
            )
        else:
            yield ok("GPU", "ROCm", f"{installed}; torch is built for ROCm {facts.hip}")


def _cards(text: str) -> tuple[list[str], str]:
    """Return a description of each card, and the driver's version."""
    try:
        values: dict[str, dict[str, Any]] = json.loads(text)
    except ValueError:
        return [], ""
    cards = []
    for key, card in values.items():
        if key.startswith("card"):
            name = next((card[label] for label in ("Card Series", "Card series", "Card SKU") if label in card), key)
            memory = card.get("VRAM Total Memory (B)")
            cards.append(f"{name} ({gib(int(memory))})" if memory else str(name))
    return cards, str(values.get("system", {}).get("Driver version", ""))


def _usable(cards: int, facts: TorchFacts) -> Iterator[Finding]:
    if facts.error is not None:
        return
    if facts.hip is None:
        yield problem(
            "GPU",
            "torch on GPU",
            f"torch {facts.version} is not built for ROCm",
            why=f"{cards} GPU(s) would stand idle",
            fix="pip uninstall -y torch, then install the torch build for your ROCm",
        )
    elif not facts.gpus:
        yield problem(
            "GPU",
            "torch on GPU",
            "torch can't use the GPUs" + (f": {facts.gpu_error}" if facts.gpu_error else ""),
            why="this user may not open /dev/kfd, or HIP_VISIBLE_DEVICES hides the GPUs",
            fix="sudo usermod -a -G render,video $USER  (then log in again)",
        )
    else:
        yield ok("GPU", "torch on GPU", f"torch sees {len(facts.gpus)} GPU(s)")
