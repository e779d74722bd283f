"""Models: one template a file, sizes as YAML in `zoo/`, built by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.models.bert import BERT as BERT
    from deepseek.models.bert import BERTConfig as BERTConfig
    from deepseek.models.clip import CLIP as CLIP
    from deepseek.models.clip import CLIPConfig as CLIPConfig
    from deepseek.models.conformer import Conformer as Conformer
    from deepseek.models.conformer import ConformerConfig as ConformerConfig
    from deepseek.models.convnext import ConvNeXt as ConvNeXt
    from deepseek.models.convnext import ConvNeXtConfig as ConvNeXtConfig
    from deepseek.models.deepseek_moe import DeepSeekMoE as DeepSeekMoE
    from deepseek.models.deepseek_moe import DeepSeekMoEConfig as DeepSeekMoEConfig
    from deepseek.models.dit import DiT as DiT
    from deepseek.models.dit import DiTConfig as DiTConfig
    from deepseek.models.efficientnet import EfficientNet as EfficientNet
    from deepseek.models.efficientnet import EfficientNetConfig as EfficientNetConfig
    from deepseek.models.factory import build as build
    from deepseek.models.factory import model_config as model_config
    from deepseek.models.ft_transformer import FTTransformer as FTTransformer
    from deepseek.models.ft_transformer import FTTransformerConfig as FTTransformerConfig
    from deepseek.models.generation import SamplingConfig as SamplingConfig
    from deepseek.models.generation import stream_tokens as stream_tokens
    from deepseek.models.gpt import GPT as GPT
    from deepseek.models.gpt import GPTConfig as GPTConfig
    from deepseek.models.llama import Llama as Llama
    from deepseek.models.llama import LlamaConfig as LlamaConfig
    from deepseek.models.lstm import LSTM as LSTM
    from deepseek.models.lstm import LSTMConfig as LSTMConfig
    from deepseek.models.mlp import MLP as MLP
    from deepseek.models.mlp import MLPConfig as MLPConfig
    from deepseek.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
    from deepseek.models.mobilenet_v2 import MobileNetV2Config as MobileNetV2Config
    from deepseek.models.mobilenet_v3 import MobileNetV3 as MobileNetV3
    from deepseek.models.mobilenet_v3 import MobileNetV3Config as MobileNetV3Config
    from deepseek.models.pretrained.front import from_pretrained as from_pretrained
    from deepseek.models.pretrained.front import save_pretrained as save_pretrained
    from deepseek.models.resnet import ResNet as ResNet
    from deepseek.models.resnet import ResNetConfig as ResNetConfig
    from deepseek.models.schnet import SchNet as SchNet
    from deepseek.models.schnet import SchNetConfig as SchNetConfig
    from deepseek.models.swin import Swin as Swin
    from deepseek.models.swin import SwinConfig as SwinConfig
    from deepseek.models.t5 import T5 as T5
    from deepseek.models.t5 import T5Config as T5Config
    from deepseek.models.transformer_xl import TransformerXL as TransformerXL
    from deepseek.models.transformer_xl import TransformerXLConfig as TransformerXLConfig
    from deepseek.models.unet_plus_plus import UNetPlusPlus as UNetPlusPlus
    from deepseek.models.unet_plus_plus import UNetPlusPlusConfig as UNetPlusPlusConfig
    from deepseek.models.vit import ViT as ViT
    from deepseek.models.vit import ViTConfig as ViTConfig
    from deepseek.models.vit3d import ViT3D as ViT3D
    from deepseek.models.vit3d import ViT3DConfig as ViT3DConfig
    from deepseek.models.whisper import Whisper as Whisper
    from deepseek.models.whisper import WhisperConfig as WhisperConfig
    from deepseek.models.yolov5 import YOLOv5 as YOLOv5
    from deepseek.models.yolov5 import YOLOv5Config as YOLOv5Config

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BERT": "deepseek.models.bert:BERT",
        "BERTConfig": "deepseek.models.bert:BERTConfig",
        "CLIP": "deepseek.models.clip:CLIP",
        "CLIPConfig": "deepseek.models.clip:CLIPConfig",
        "Conformer": "deepseek.models.conformer:Conformer",
        "ConformerConfig": "deepseek.models.conformer:ConformerConfig",
        "ConvNeXt": "deepseek.models.convnext:ConvNeXt",
        "ConvNeXtConfig": "deepseek.models.convnext:ConvNeXtConfig",
        "DeepSeekMoE": "deepseek.models.deepseek_moe:DeepSeekMoE",
        "DeepSeekMoEConfig": "deepseek.models.deepseek_moe:DeepSeekMoEConfig",
        "DiT": "deepseek.models.dit:DiT",
        "DiTConfig": "deepseek.models.dit:DiTConfig",
        "EfficientNet": "deepseek.models.efficientnet:EfficientNet",
        "EfficientNetConfig": "deepseek.models.efficientnet:EfficientNetConfig",
        "FTTransformer": "deepseek.models.ft_transformer:FTTransformer",
        "FTTransformerConfig": "deepseek.models.ft_transformer:FTTransformerConfig",
        "GPT": "deepseek.models.gpt:GPT",
        "GPTConfig": "deepseek.models.gpt:GPTConfig",
        "LSTM": "deepseek.models.lstm:LSTM",
        "LSTMConfig": "deepseek.models.lstm:LSTMConfig",
        "Llama": "deepseek.models.llama:Llama",
        "LlamaConfig": "deepseek.models.llama:LlamaConfig",
        "MLP": "deepseek.models.mlp:MLP",
        "MLPConfig": "deepseek.models.mlp:MLPConfig",
        "MobileNetV2": "deepseek.models.mobilenet_v2:MobileNetV2",
        "MobileNetV2Config": "deepseek.models.mobilenet_v2:MobileNetV2Config",
        "MobileNetV3": "deepseek.models.mobilenet_v3:MobileNetV3",
        "MobileNetV3Config": "deepseek.models.mobilenet_v3:MobileNetV3Config",
        "ResNet": "deepseek.models.resnet:ResNet",
        "ResNetConfig": "deepseek.models.resnet:ResNetConfig",
        "SamplingConfig": "deepseek.models.generation:SamplingConfig",
        "SchNet": "deepseek.models.schnet:SchNet",
        "SchNetConfig": "deepseek.models.schnet:SchNetConfig",
        "Swin": "deepseek.models.swin:Swin",
        "SwinConfig": "deepseek.models.swin:SwinConfig",
        "T5": "deepseek.models.t5:T5",
        "T5Config": "deepseek.models.t5:T5Config",
        "TransformerXL": "deepseek.models.transformer_xl:TransformerXL",
        "TransformerXLConfig": "deepseek.models.transformer_xl:TransformerXLConfig",
        "UNetPlusPlus": "deepseek.models.unet_plus_plus:UNetPlusPlus",
        "UNetPlusPlusConfig": "deepseek.models.unet_plus_plus:UNetPlusPlusConfig",
        "ViT": "deepseek.models.vit:ViT",
        "ViT3D": "deepseek.models.vit3d:ViT3D",
        "ViT3DConfig": "deepseek.models.vit3d:ViT3DConfig",
        "ViTConfig": "deepseek.models.vit:ViTConfig",
        "Whisper": "deepseek.models.whisper:Whisper",
        "WhisperConfig": "deepseek.models.whisper:WhisperConfig",
        "YOLOv5": "deepseek.models.yolov5:YOLOv5",
        "YOLOv5Config": "deepseek.models.yolov5:YOLOv5Config",
        "build": "deepseek.models.factory:build",
        "from_pretrained": "deepseek.models.pretrained.front:from_pretrained",
        "model_config": "deepseek.models.factory:model_config",
        "save_pretrained": "deepseek.models.pretrained.front:save_pretrained",
        "stream_tokens": "deepseek.models.generation:stream_tokens",
    },
)
