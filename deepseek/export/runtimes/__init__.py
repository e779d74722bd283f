"""Things that run a model and look the same to evaluation, parity checks and serving, whatever runs beneath."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.export.runtimes.eager import EagerRuntime as EagerRuntime
    from deepseek.export.runtimes.inductor import InductorRuntime as InductorRuntime
    from deepseek.export.runtimes.onnx_runtime import OnnxRuntime as OnnxRuntime
    from deepseek.export.runtimes.openvino_runtime import OpenVinoRuntime as OpenVinoRuntime
    from deepseek.export.runtimes.runtime import Runtime as Runtime
    from deepseek.export.runtimes.runtime import Settings as Settings

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EagerRuntime": "deepseek.export.runtimes.eager:EagerRuntime",
        "InductorRuntime": "deepseek.export.runtimes.inductor:InductorRuntime",
        "OnnxRuntime": "deepseek.export.runtimes.onnx_runtime:OnnxRuntime",
        "OpenVinoRuntime": "deepseek.export.runtimes.openvino_runtime:OpenVinoRuntime",
        "Runtime": "deepseek.export.runtimes.runtime:Runtime",
        "Settings": "deepseek.export.runtimes.runtime:Settings",
        "open_runtime": "deepseek.export.runtimes.opening:open_runtime",
        "runtimes_present": "deepseek.export.runtimes.opening:runtimes_present",
    },
)
