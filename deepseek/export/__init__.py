"""Models in forms that run elsewhere, each checked against the original: ONNX and ahead-of-time packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.export.onnx_export import OnnxConfig as OnnxConfig
    from deepseek.export.onnx_export import OnnxReport as OnnxReport
    from deepseek.export.onnx_export import export_onnx as export_onnx
    from deepseek.export.runtimes import EagerRuntime as EagerRuntime
    from deepseek.export.runtimes import OnnxRuntime as OnnxRuntime
    from deepseek.export.runtimes import Runtime as Runtime
    from deepseek.export.static import load_static as load_static

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EagerRuntime": "deepseek.export.runtimes:EagerRuntime",
        "OnnxConfig": "deepseek.export.onnx_export:OnnxConfig",
        "OnnxReport": "deepseek.export.onnx_export:OnnxReport",
        "OnnxRuntime": "deepseek.export.runtimes:OnnxRuntime",
        "Runtime": "deepseek.export.runtimes:Runtime",
        "export_onnx": "deepseek.export.onnx_export:export_onnx",
        "load_static": "deepseek.export.static:load_static",
    },
)
