"""What a kind of run must do at each stage of the road; `walk` knows no more of it than this.

Two kinds: language models learn from packed text (`language`), all other tasks from samples (`samples`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from deepseek.bundle import Bundle
from deepseek.compress.config import CompressConfig
from deepseek.export.onnx_export import OnnxConfig
from deepseek.lazy import load
from deepseek.road.recipe import LANGUAGE_MODELING, EvaluateConfig, Recipe
from deepseek.road.run_folder import RunFolder


class Stages(Protocol):
    """The stages of one kind of run. `data` is what `data_stage` returned: its `facts` go into the results."""

    evaluated: Sequence[str]
    """Sections of the results that `evaluate_stage` records."""

    def check(self, recipe: Recipe) -> None:
        """Raise ConfigError, before anything is read, for a stage that this kind of run does not have."""
        ...

    def data_stage(self, recipe: Recipe, run: RunFolder, *, resume: bool = False) -> Any:
        """Read the data and hold them against model and task; nothing is written into the run folder.

        Raises ConfigError for what does not fit together, DataError for wrong data.
        """
        ...

    def data_of(self, recipe: Recipe, bundle: Bundle) -> Any:
        """Return the recipe's data for a model that is trained already."""
        ...

    def foreign_data(self, bundle: Bundle, path: str, recipe: Recipe | None) -> Any:
        """Return all samples at `path` to measure a trained model on; `recipe` is that of its run, if known."""
        ...

    def train_stage(self, recipe: Recipe, run: RunFolder, data: Any, *, resume: bool = False) -> bool:
        """Train, write checkpoints and the bundle, record the numbers; return whether it was interrupted."""
        ...

    def evaluate_stage(
        self, bundle: Bundle, data: Any, config: EvaluateConfig, run: RunFolder | None
    ) -> dict[str, Any]:
        """Return the figures on the data held back; with `run`, record them and what the report shows."""
        ...

    def compress_stage(
        self, bundle: Path, out: Path, data: Any, config: CompressConfig, say: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Write the compressed bundle, and return the table of its forms; `say` is told what is done next."""
        ...

    def export_stage(self, bundle: Bundle, path: Path, config: OnnxConfig) -> dict[str, Any]:
        """Write the ONNX file, checked by running it, and return the checks."""
        ...

    def data_line(self, facts: dict[str, Any]) -> str:
        """Return what is said of the data, in rich's markup; so the others."""
        ...

    def train_line(self, results: dict[str, Any]) -> str: ...

    def evaluate_line(self, numbers: dict[str, Any]) -> str: ...

    def next_steps(self, run: RunFolder) -> list[tuple[str, str]]:
        """Return what can be done with a finished run: a word, and the command."""
        ...


def stages_of(task_name: str) -> Stages:
    """Return the stages of a run for a task."""
    kind = "language:LanguageStages" if task_name == LANGUAGE_MODELING else "samples:SampleStages"
    return cast(Stages, cast(Any, load(f"deepseek.road.{kind}"))())
