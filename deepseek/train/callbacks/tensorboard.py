"""More for TensorBoard than the loop writes by itself: every step's numbers, histograms of weights, the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import ConfigError
from deepseek.lazy import require
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.ema import trained_parameters
from deepseek.train.metrics_log import WarnOnce

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState


class TensorBoard(Callback):
    """Writes events to `log_dir`, by default `tensorboard/callback` in the run's folder, beside those of the loop.

    Loss, gradient norm and learning rate come every `every` steps, the validation's numbers after each one, histograms
    of all trained parameters every `histograms` steps (None: none), the settings once. A resumed run hides the events
    of later steps.
    Raises MissingExtraError where tensorboard is not installed, ConfigError for a wrong argument or a run without
    folder and log_dir.
    """

    def __init__(self, log_dir: str | Path | None = None, every: int = 1, histograms: int | None = None) -> None:
        if every < 1 or (histograms is not None and histograms < 1):
            raise ConfigError(
                "TensorBoard's every or histograms is wrong",
                found=f"every={every}, histograms={histograms}",
                wanted="at least 1 step",
            )
        require("tensorboard", "tensorboard")
        self.log_dir = Path(log_dir) if log_dir is not None else None
        self.every = every
        self.histograms = histograms
        self._writer: Any = None
        self._warning = WarnOnce(Path("tensorboard"))

    def on_train_begin(self, state: RunState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.log_dir
        if folder is None:
            if state.output_dir is None:
                fix = "TensorBoard('logs'), or give the trainer output_dir"
                raise ConfigError("TensorBoard has nowhere to write", fix=fix)
            folder = state.output_dir / "tensorboard" / "callback"
        self._warning = WarnOnce(folder)
        self._writer = SummaryWriter(str(folder), purge_step=state.step + 1 if state.step else None)
        settings = "".join(f"    {name}: {value}\n" for name, value in state.config.model_dump().items())
        self._writer.add_text("settings", settings, state.step)

    def on_step_end(self, state: RunState) -> None:
        if state.step % self.every == 0:
            self._scalars({name: getattr(state, name) for name in ("loss", "grad_norm", "learning_rate")}, state.step)
        if self.histograms is not None and state.step % self.histograms == 0:
            with self._warning:
                for name, parameter in trained_parameters(state.model):
                    self._writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu(), state.step)

    def on_validation_end(self, state: RunState) -> None:
        self._scalars(state.metrics, state.step)

    def close(self) -> None:
        if self._writer is not None:
            with self._warning:
                self._writer.close()
            self._writer = None

    def _scalars(self, values: dict[str, float], step: int) -> None:
        with self._warning:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
