"""Reckons what every size of the zoo costs and writes `deepseek/models/catalogue.yaml` anew.

`python -m tests.contract.update_catalogue`, then read the diff before it is committed.
"""

from __future__ import annotations

from dataclasses import asdict

from deepseek.models.catalogue import entry
from deepseek.models.factory import model_config, zoo
from tests.contract.source_tree import PACKAGE

FILE = PACKAGE / "models" / "catalogue.yaml"


def main() -> None:
    """Write the file and say so."""
    lines = ["# Costs of the zoo's sizes, written by: python -m tests.contract.update_catalogue"]
    for name in zoo():
        costs = asdict(entry(name, *model_config(name)))
        inputs = ", ".join(f"{key}: {shape}" for key, shape in costs["inputs"].items())
        numbers = f"template: {costs['template']}, parameters: {costs['parameters']}, flops: {costs['flops']}"
        lines.append(f"{name}: {{{numbers}, inputs: {{{inputs}}}}}")
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {FILE.name}: {len(lines) - 1} sizes")


if __name__ == "__main__":
    main()
