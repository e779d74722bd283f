"""The bundles that are served, with drawn weights, exported and measured on the cores that will serve them.

`mlp`: 16 features, 32 hidden, 2 classes. `table`: an FT-Transformer on 20 columns, as for fraud. `text`: a BERT of 4
layers that takes milliseconds. `resnet18`: 224 x 224 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deepseek import bundle as bundles
from deepseek.export import choose_runtime, export_onnx


def make(name: str, folder: Path) -> None:
    """Write one bundle to `folder / name`. The choice of runtime holds for the cores this process may use."""
    torch.manual_seed(0)
    model, labels = _model(name)
    path = bundles.save(model.eval(), folder / name, task="classification", labels=labels)
    (path / "exports").mkdir()
    export_onnx(bundles.load(path, device="cpu").model, path / "exports" / "model.onnx")
    choose_runtime(path, seconds=3.0, runtimes=["eager", "onnxruntime", "openvino"], precisions=("fp32",))


def _model(name: str) -> tuple[Any, list[str]]:
    from deepseek.models.bert import BERT, BERTConfig
    from deepseek.models.ft_transformer import FTTransformer, FTTransformerConfig
    from deepseek.models.mlp import MLP, MLPConfig
    from deepseek.models.resnet import ResNet, ResNetConfig

    if name == "mlp":
        return MLP(MLPConfig(input_shape=[16], hidden_sizes=[32], num_labels=2)), ["no", "yes"]
    if name == "table":
        columns = [8, 16, 4, 32, 12]
        shape = FTTransformerConfig(
            num_numeric=15, cardinalities=columns, num_labels=2, num_layers=3, d_model=64, num_heads=8
        )
        return FTTransformer(shape), ["honest", "fraud"]
    if name == "text":
        config = BERTConfig(
            vocab_size=1000, d_model=256, num_heads=4, num_layers=4, max_length=64, num_labels=2, head="classification"
        )
        return BERT(config), ["no", "yes"]
    sizes = [64, 128, 256, 512]
    return ResNet(ResNetConfig(block="basic", depths=[2, 2, 2, 2], hidden_sizes=sizes)), []
