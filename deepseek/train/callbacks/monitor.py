"""Which number a callback watches, and which of two values is the better one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from deepseek.errors import ConfigError, did_you_mean

Mode = Literal["auto", "min", "max"]

_LARGER = frozenset(
    "acc accuracy ap auc bleu correct dice f1 iou kappa map miou precision psnr r2 recall rouge score ssim "
    "top1 top5".split()
)
_SMALLER = frozenset(
    "bits bpb cer deviation distance error fid loss mae mape mse nll perplexity ppl rate rmse wer".split()
)


class Monitor:
    """The number `name` of each validation: a name that begins with `val_`.

    `mode`: whether a smaller ("min") or a larger ("max") value is better; "auto" tells by the name (`val_loss`,
    `val_accuracy`). A value has to be better by more than `min_delta`.
    Raises ConfigError for another name, and for one of which "auto" can't tell.
    """

    def __init__(self, name: str, mode: Mode = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(name, str) or not name.startswith("val_"):
            raise ConfigError(
                "monitor is no number of the validation", found=repr(name), wanted="'val_loss' or another 'val_...'"
            )
        if mode not in ("auto", "min", "max"):
            raise ConfigError("mode is wrong", found=repr(mode), wanted="'auto', 'min' or 'max'")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigError("min_delta is wrong", found=min_delta, wanted="a number of at least 0")
        self.name = name
        self.min_delta = min_delta
        self.smaller_is_better = mode == "min" or (mode == "auto" and _smaller_is_better(name))

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return the monitored number of `metrics`. Raises ConfigError naming those there are."""
        if self.name not in metrics:
            raise ConfigError(
                f"the validation has no '{self.name}'",
                found=", ".join(sorted(metrics)) or "no number",
                fix=did_you_mean(self.name, metrics) if metrics else "give the trainer val_dataset",
            )
        return float(metrics[self.name])

    def better(self, value: float, than: float | None) -> bool:
        """Return whether `value` is better than `than` (None: nothing yet). What is not finite never is."""
        if not math.isfinite(value):
            return False
        if than is None:
            return True
        return value < than - self.min_delta if self.smaller_is_better else value > than + self.min_delta


def _smaller_is_better(name: str) -> bool:
    words = {word for part in re.split(r"[^a-z0-9]+", name.lower()) for word in (part, part.rstrip("0123456789"))}
    smaller, larger = bool(words & _SMALLER), bool(words & _LARGER)
    if smaller == larger:
        raise ConfigError(
            f"mode 'auto' can't tell whether a larger '{name}' is better", fix="write mode='min' or mode='max'"
        )
    return smaller
