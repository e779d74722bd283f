"""Static int8 models as graphs of quantize and dequantize nodes, which integer runtimes turn into fast kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.export.qdq.program import Edge as Edge
    from deepseek.export.qdq.program import QdqConfig as QdqConfig
    from deepseek.export.qdq.program import QuantizedProgram as QuantizedProgram
    from deepseek.export.qdq.program import quantized_program as quantized_program

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Edge": "deepseek.export.qdq.program:Edge",
        "QdqConfig": "deepseek.export.qdq.program:QdqConfig",
        "QuantizedProgram": "deepseek.export.qdq.program:QuantizedProgram",
        "quantized_program": "deepseek.export.qdq.program:quantized_program",
    },
)
