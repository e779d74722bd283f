"""What can be hung onto a training run: `Trainer(..., callbacks=[deepseek.callbacks.EMA(0.999)])`.

Not here: the code, which is in `deepseek.train.callbacks`, one idea a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.train.callbacks.callback import Callback as Callback
    from deepseek.train.callbacks.callback_list import CallbackList as CallbackList
    from deepseek.train.callbacks.csv_file import CSV as CSV
    from deepseek.train.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from deepseek.train.callbacks.ema import EMA as EMA
    from deepseek.train.callbacks.function import LambdaCallback as LambdaCallback
    from deepseek.train.callbacks.gradient_norm import GradientNorm as GradientNorm
    from deepseek.train.callbacks.learning_rate_monitor import LearningRateMonitor as LearningRateMonitor
    from deepseek.train.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from deepseek.train.callbacks.sample_generations import SampleGenerations as SampleGenerations
    from deepseek.train.callbacks.tensorboard import TensorBoard as TensorBoard
    from deepseek.train.callbacks.timer import Timer as Timer

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CSV": "deepseek.train.callbacks.csv_file:CSV",
        "Callback": "deepseek.train.callbacks.callback:Callback",
        "CallbackList": "deepseek.train.callbacks.callback_list:CallbackList",
        "EMA": "deepseek.train.callbacks.ema:EMA",
        "EarlyStopping": "deepseek.train.callbacks.early_stopping:EarlyStopping",
        "GradientNorm": "deepseek.train.callbacks.gradient_norm:GradientNorm",
        "LambdaCallback": "deepseek.train.callbacks.function:LambdaCallback",
        "LearningRateMonitor": "deepseek.train.callbacks.learning_rate_monitor:LearningRateMonitor",
        "ModelCheckpoint": "deepseek.train.callbacks.model_checkpoint:ModelCheckpoint",
        "SampleGenerations": "deepseek.train.callbacks.sample_generations:SampleGenerations",
        "TensorBoard": "deepseek.train.callbacks.tensorboard:TensorBoard",
        "Timer": "deepseek.train.callbacks.timer:Timer",
    },
)
