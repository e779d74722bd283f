"""Models in forms that run elsewhere, each checked against the original: ONNX, OpenVINO IR, ahead-of-time packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.export.aot import AotReport as AotReport
    from deepseek.export.aot import export_aot as export_aot
    from deepseek.export.aot import load_static as load_static
    from deepseek.export.first_difference import Difference as Difference
    from deepseek.export.generation_export import GenerationReport as GenerationReport
    from deepseek.export.generation_export import export_generation as export_generation
    from deepseek.export.generation_run import ExportedGenerator as ExportedGenerator
    from deepseek.export.onnx_export import OnnxConfig as OnnxConfig
    from deepseek.export.onnx_export import OnnxReport as OnnxReport
    from deepseek.export.onnx_export import export_onnx as export_onnx
    from deepseek.export.openvino_export import OpenVinoConfig as OpenVinoConfig
    from deepseek.export.openvino_export import OpenVinoReport as OpenVinoReport
    from deepseek.export.openvino_export import export_openvino as export_openvino
    from deepseek.export.runtimes import EagerRuntime as EagerRuntime
    from deepseek.export.runtimes import OnnxRuntime as OnnxRuntime
    from deepseek.export.runtimes import Runtime as Runtime

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AotReport": "deepseek.export.aot:AotReport",
        "Difference": "deepseek.export.first_difference:Difference",
        "EagerRuntime": "deepseek.export.runtimes:EagerRuntime",
        "ExportedGenerator": "deepseek.export.generation_run:ExportedGenerator",
        "GenerationReport": "deepseek.export.generation_export:GenerationReport",
        "InductorRuntime": "deepseek.export.runtimes.inductor:InductorRuntime",
        "OnnxConfig": "deepseek.export.onnx_export:OnnxConfig",
        "OnnxReport": "deepseek.export.onnx_export:OnnxReport",
        "OnnxRuntime": "deepseek.export.runtimes:OnnxRuntime",
        "OpenVinoConfig": "deepseek.export.openvino_export:OpenVinoConfig",
        "OpenVinoReport": "deepseek.export.openvino_export:OpenVinoReport",
        "OpenVinoRuntime": "deepseek.export.runtimes.openvino_runtime:OpenVinoRuntime",
        "Runtime": "deepseek.export.runtimes:Runtime",
        "choose_runtime": "deepseek.export.chosen:choose_runtime",
        "climb": "deepseek.export.ladder:climb",
        "export_aot": "deepseek.export.aot:export_aot",
        "export_generation": "deepseek.export.generation_export:export_generation",
        "export_onnx": "deepseek.export.onnx_export:export_onnx",
        "export_openvino": "deepseek.export.openvino_export:export_openvino",
        "load_choice": "deepseek.export.chosen:load_choice",
        "load_static": "deepseek.export.aot:load_static",
        "open_runtime": "deepseek.export.runtimes.opening:open_runtime",
        "runtimes_present": "deepseek.export.runtimes.opening:runtimes_present",
    },
)
