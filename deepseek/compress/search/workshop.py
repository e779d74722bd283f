"""Makes the candidates of a search. What took a training is kept in the search's folder, for the next life of it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from deepseek import bundle as bundles
from deepseek.bundle import Bundle
from deepseek.compress.config import CompressConfig
from deepseek.compress.forms import quiet_form
from deepseek.compress.pruning import PruneConfig, prune_model
from deepseek.compress.quality import main_metric
from deepseek.compress.recovery import distilled, learned_int8
from deepseek.compress.search.ladder import Candidate, forms
from deepseek.compress.sensitivity import search_mix
from deepseek.compress.stage import save_like
from deepseek.errors import BundleError
from deepseek.tasks.task import Task


class Workshop:
    """Makes forms of one bundle's model. `batches` measure mixes, `calibration` finds ranges, `train_data` trains."""

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        batches: Iterable[Any],
        calibration: Iterable[Any],
        train_data: Any,
        config: CompressConfig,
        folder: Path,
    ) -> None:
        self.bundle, self.task, self.batches = bundle, task, batches
        self.calibration, self.train_data, self.config = calibration, train_data, config
        self.folder = folder / "models"
        self._at_hand: tuple[float, nn.Module] | None = None

    @property
    def can_prune(self) -> bool:
        """Whether the extra [compress] is installed."""
        return find_spec("torch_pruning") is not None

    def make(self, candidate: Candidate, figures: dict[str, float], seconds: float) -> nn.Module:
        """Return the candidate's model, not the original itself; `figures` are the original's.

        `seconds` bound a training. Raises what pruning, training and quantization raise.
        """
        kept = self.folder / file_name(candidate.name)
        if candidate.form == "int8 qat" and (found := _stored(kept)) is not None:
            return found
        base = self._variant(candidate.ratio, seconds)
        if candidate.form == "fp32":
            return copy.deepcopy(base)
        if candidate.form == "int8 qat":
            learned, _ = learned_int8(base, self.task, self.train_data, self.calibration, self.config, seconds)
            save_like(self.bundle, learned, kept, {})
            return learned
        if candidate.form == "mixed":
            allowed = self.config.allowed_drop(main_metric(figures).name)
            mix = search_mix(
                base,
                self.task,
                self.batches,
                allowed,
                calibration=self.calibration,
                base=self.config,
                seconds=seconds / 4,
                original=figures,
            )
            return quiet_form(base, mix.config, self.calibration, self.config.calibration_batches)[0]
        quant = forms(self.config)[candidate.form]
        return quiet_form(base, quant, self.calibration, self.config.calibration_batches)[0]

    def clean(self) -> None:
        """Remove the models that only served the search."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _variant(self, ratio: float, seconds: float) -> nn.Module:
        """Return the original, or the pruned and distilled model; the last one asked for stays in memory."""
        if not ratio:
            return self.bundle.model
        if self._at_hand is None or self._at_hand[0] != ratio:
            kept = self.folder / f"pruned-{ratio * 100:.0f}"
            found = _stored(kept)
            if found is None:
                found = self._pruned(ratio, seconds)
                save_like(self.bundle, found, kept, {})
            self._at_hand = (ratio, found)
        return self._at_hand[1]

    def _pruned(self, ratio: float, seconds: float) -> nn.Module:
        """Return a smaller copy that learned from the original."""
        model = self.bundle.model
        student = prune_model(model, PruneConfig(ratio=ratio, skip=self.config.skip))[0]
        return distilled(student, model, self.task, self.train_data, self.config, seconds)


def _stored(path: Path) -> nn.Module | None:
    """Return the model of a bundle that an earlier life wrote; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return bundles.load(path, device="cpu").model
    except BundleError:
        return None


def file_name(name: str) -> str:
    """Return the folder of a candidate's model: `pruned 50%, int8 static` -> `pruned-50-int8-static`."""
    return name.replace("%", "").replace(", ", "-").replace(" ", "-")
