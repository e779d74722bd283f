"""`Quantizer`: quantization of a saved model, or of one in memory, as an object that also saves the result."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deepseek import bundle
from deepseek.errors import QuantizationError
from deepseek.quantization.calibrate import CalibrationData
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.quantize import quantize_with_report
from deepseek.quantization.report import QuantReport


class Quantizer:
    """Quantizes `model`, or the bundle or `.pt` file at `model_path`; exactly one of the two.

    Each `apply_*` starts from the original model, so they can be compared. `model` is the latest result (before any,
    the original) and `report` what happened to its layers. Raises BundleError if the file can't be read.
    """

    def __init__(self, model_path: str | Path | None = None, model: nn.Module | None = None) -> None:
        if (model_path is None) == (model is None):
            raise QuantizationError(
                "Quantizer needs a model",
                found="both" if model else "neither",
                wanted="model_path or model, one of them",
            )
        self._bundle = bundle.load(model_path, device="cpu") if model_path is not None else None
        self._original: nn.Module = self._bundle.model if self._bundle is not None else model  # type: ignore[assignment]
        self.model = self._original
        self.report: QuantReport | None = None

    def apply_static_quant(
        self, calibration_data: CalibrationData | None = None, config: QuantConfig | None = None
    ) -> nn.Module:
        """Quantize weights and activations to int8 with calibrated ranges; return the quantized model.

        Batch norms are folded into the layer before them first. Without `calibration_data` the model's
        `example_inputs` serve, with a warning. Raises as `quantize_model` does.
        """
        return self._apply(config or QuantConfig(method="static", calibration="kl"), calibration_data)

    def apply_dynamic_quant(self, config: QuantConfig | None = None) -> nn.Module:
        """Quantize weights to int8, activations to int8 for each token as it arrives; return the quantized model."""
        return self._apply(config or QuantConfig(method="dynamic"), None)

    def apply(self, config: QuantConfig, calibration_data: CalibrationData | None = None) -> nn.Module:
        """Quantize as `config` says; return the quantized model. Raises as `quantize_model` does."""
        return self._apply(config, calibration_data)

    def save(self, path: str | Path) -> Path:
        """Write the quantized model as a bundle, or as one file if `path` ends in `.pt`.

        What was there stays whole until the new one is. Raises QuantizationError if nothing was quantized yet,
        BundleError or StorageError if it can't be written.
        """
        if self.report is None:
            raise QuantizationError(
                "nothing to save: the model is not quantized yet", fix="call apply_static_quant() first"
            )
        if self._bundle is None:
            return bundle.save(self.model, path, report=self.report.to_dict())
        config = self._bundle.config
        return bundle.save(
            self.model,
            path,
            tokenizer=self._bundle.tokenizer,
            task=config.task,
            task_settings=config.task_settings,
            labels=config.labels,
            pipeline=config.pipeline,
            profile=self._bundle.profile,
            report=self.report.to_dict(),
        )

    def _apply(self, config: QuantConfig, calibration_data: CalibrationData | None) -> nn.Module:
        self.model, self.report = quantize_with_report(self._original, config, calibration_data)
        return self.model
