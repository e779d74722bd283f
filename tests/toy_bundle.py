"""A folder that passes for a bundle wherever its weights are not read."""

from __future__ import annotations

from pathlib import Path


def toy_bundle(path: Path, weights: int = 1000, task: str = "language_modeling") -> Path:
    """Write a bundle of `weights` bytes (a sparse file) that no model can be made of."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"format_version: 1\ntask: {task}\nmodel: {{name: gpt}}\n", encoding="utf-8")
    with open(path / "model.safetensors", "wb") as file:
        file.truncate(weights)
    return path
