"""Paths with fields in braces: `epoch_{epoch}`, `{step:06d}-{val_loss:.3f}`. Names only: no attributes, no calls."""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

_COUNTS = ("epoch", "step")
_NUMBERS = ("items", "loss", "val_loss")


class PathFields:
    """A path to be filled in: `epoch` is the pass over the data that is under way or just done, from 1; `step` counts
    from 1 too; `items`, `loss`, and the numbers of the newest validation (`val_...`) may be there as well.

    Raises ConfigError for a field that no run can have, and for a format that its number does not take.
    """

    def __init__(self, text: str | Path) -> None:
        self.text = str(text)
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise self._wrong(str(error)) from None
        self.fields = {name for _, name, _, _ in parts if name is not None}
        for name in sorted(self.fields):
            if name not in (*_COUNTS, *_NUMBERS) and not (name.startswith("val_") and name.isidentifier()):
                fix = did_you_mean(name, [*_COUNTS, *_NUMBERS])
                raise self._wrong(f"the field {{{name}}}", f"{fix} Numbers of the validation begin with val_")
        if any("{" in (form or "") for _, _, form, _ in parts):
            raise self._wrong("a field inside a format")
        self._fill(dict.fromkeys(self.fields - set(_COUNTS), 0.5) | dict.fromkeys(_COUNTS, 1))

    def path(self, state: RunState) -> Path:
        """Return the path at this moment. Raises ConfigError for a number that the run has not, naming those it has."""
        known: dict[str, float] = {
            **state.metrics,
            "epoch": max(1, math.ceil(state.epoch - 1e-9)),
            "step": state.step,
            "items": float(state.items),
            "loss": state.loss,
        }
        missing = sorted(self.fields - set(known))
        if missing:
            raise ConfigError(
                f"the path {self.text} has a field that this run has no number for",
                found=", ".join(missing),
                wanted=", ".join(sorted(known)),
                fix="give the trainer val_dataset, and a validate_every of at most the steps between two saves"
                if not state.metrics
                else did_you_mean(missing[0], known),
            )
        return Path(self._fill(known))

    def _fill(self, values: dict[str, float]) -> str:
        try:
            return self.text.format(**values)
        except (ValueError, IndexError, KeyError) as error:
            raise self._wrong(f"{type(error).__name__}: {error}") from None

    def _wrong(self, found: str, fix: str | None = None) -> ConfigError:
        return ConfigError(
            f"the path '{self.text}' can't be filled in",
            found=found,
            wanted="fields such as {epoch}, {step:06d} or {val_loss:.3f}",
            fix=fix,
        )
