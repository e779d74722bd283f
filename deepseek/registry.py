"""The name tables: what a name in YAML or on the command line stands for.

Plain dictionaries `name -> "module:Class"`; nothing scans, decorates or imports until a name is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepseek.errors import ConfigError, did_you_mean
from deepseek.lazy import load

MODELS: Mapping[str, str] = {
    "BERT": "deepseek.models.bert:BERT",
    "CLIP": "deepseek.models.clip:CLIP",
    "Conformer": "deepseek.models.conformer:Conformer",
    "ConvNeXt": "deepseek.models.convnext:ConvNeXt",
    "DeepSeekMoE": "deepseek.models.deepseek_moe:DeepSeekMoE",
    "DiT": "deepseek.models.dit:DiT",
    "EfficientNet": "deepseek.models.efficientnet:EfficientNet",
    "FTTransformer": "deepseek.models.ft_transformer:FTTransformer",
    "GPT": "deepseek.models.gpt:GPT",
    "LSTM": "deepseek.models.lstm:LSTM",
    "Llama": "deepseek.models.llama:Llama",
    "MLP": "deepseek.models.mlp:MLP",
    "MobileNetV2": "deepseek.models.mobilenet_v2:MobileNetV2",
    "MobileNetV3": "deepseek.models.mobilenet_v3:MobileNetV3",
    "ResNet": "deepseek.models.resnet:ResNet",
    "SchNet": "deepseek.models.schnet:SchNet",
    "Swin": "deepseek.models.swin:Swin",
    "T5": "deepseek.models.t5:T5",
    "TransformerXL": "deepseek.models.transformer_xl:TransformerXL",
    "UNetPlusPlus": "deepseek.models.unet_plus_plus:UNetPlusPlus",
    "ViT": "deepseek.models.vit:ViT",
    "ViT3D": "deepseek.models.vit3d:ViT3D",
    "Whisper": "deepseek.models.whisper:Whisper",
    "YOLOv5": "deepseek.models.yolov5:YOLOv5",
}
"""Model templates: the value of `model.name` in YAML."""

MODEL_CONFIGS: Mapping[str, str] = {name: f"{target}Config" for name, target in MODELS.items()}
"""The config class of each template, with the same keys as MODELS."""

PRETRAINED: Mapping[str, str] = {
    "bert": "deepseek.models.pretrained.bert:FAMILY",
    "clip": "deepseek.models.pretrained.clip:FAMILY",
    "convnext": "deepseek.models.pretrained.convnext:FAMILY",
    "deepseek_v2": "deepseek.models.pretrained.deepseek_v2:FAMILY",
    "deepseek_v3": "deepseek.models.pretrained.deepseek_v3:FAMILY",
    "efficientnet": "deepseek.models.pretrained.efficientnet:FAMILY",
    "gpt2": "deepseek.models.pretrained.gpt2:FAMILY",
    "llama": "deepseek.models.pretrained.llama:FAMILY",
    "mobilenet_v2": "deepseek.models.pretrained.mobilenet_v2:FAMILY",
    "qwen2": "deepseek.models.pretrained.qwen2:FAMILY",
    "resnet": "deepseek.models.pretrained.resnet:FAMILY",
    "swin": "deepseek.models.pretrained.swin:FAMILY",
    "t5": "deepseek.models.pretrained.t5:FAMILY",
    "vit": "deepseek.models.pretrained.vit:FAMILY",
    "whisper": "deepseek.models.pretrained.whisper:FAMILY",
}
"""How to read checkpoints of the Hugging Face layout, by the `model_type` in their config.json."""

STAGES: Mapping[str, str] = {
    "AddNoise": "deepseek.data.audio.noise:AddNoise",
    "AddSilence": "deepseek.data.audio.silence:AddSilence",
    "CenterCrop": "deepseek.data.image.crop:CenterCrop",
    "Cepstra": "deepseek.data.audio.features:Cepstra",
    "ColorJitter": "deepseek.data.image.color:ColorJitter",
    "CutMix": "deepseek.data.image.mix:CutMix",
    "Deltas": "deepseek.data.audio.features:Deltas",
    "FeatureExtract": "deepseek.data.audio.features:FeatureExtract",
    "GlobalMeanVarianceNorm": "deepseek.data.audio.global_norm:GlobalMeanVarianceNorm",
    "Grayscale": "deepseek.data.image.color:Grayscale",
    "HorizontalFlip": "deepseek.data.image.flip:HorizontalFlip",
    "Letterbox": "deepseek.data.image.resize:Letterbox",
    "LogMel": "deepseek.data.audio.features:LogMel",
    "MaskTokens": "deepseek.data.masking:MaskTokens",
    "MeanVarianceNorm": "deepseek.data.audio.features:MeanVarianceNorm",
    "MixUp": "deepseek.data.image.mix:MixUp",
    "Mosaic": "deepseek.data.image.mosaic:Mosaic",
    "Normalize": "deepseek.data.image.normalize:Normalize",
    "PreEmphasis": "deepseek.data.audio.features:PreEmphasis",
    "RandomAffine": "deepseek.data.image.affine:RandomAffine",
    "RandomCrop": "deepseek.data.image.crop:RandomCrop",
    "RandomElasticDeformation": "deepseek.data.image.elastic:RandomElasticDeformation",
    "RandomErasing": "deepseek.data.image.erase:RandomErasing",
    "RandomPatch": "deepseek.data.volume.patches:RandomPatch",
    "RandomResizedCrop": "deepseek.data.image.crop:RandomResizedCrop",
    "Resample": "deepseek.data.audio.resample:Resample",
    "Resize": "deepseek.data.image.resize:Resize",
    "SpecAugment": "deepseek.data.audio.spec_augment:SpecAugment",
    "SpecMix": "deepseek.data.audio.spec_mix:SpecMix",
    "SpeedPerturb": "deepseek.data.audio.speed:SpeedPerturb",
    "SpellText": "deepseek.data.spell_text:SpellText",
    "TableColumns": "deepseek.data.table_columns:TableColumns",
    "Tokenize": "deepseek.data.tokenize:Tokenize",
    "TrimSilence": "deepseek.data.audio.endpoint:TrimSilence",
    "VerticalFlip": "deepseek.data.image.flip:VerticalFlip",
    "WhisperFeatures": "deepseek.data.audio.whisper_features:WhisperFeatures",
    "Window": "deepseek.data.volume.window:Window",
}
"""The stages of a `deepseek.data.Pipeline`: the value of `name` of each in YAML."""

TASKS: Mapping[str, str] = {
    "classification": "deepseek.tasks.classification:Classification",
    "contrastive": "deepseek.tasks.contrastive:Contrastive",
    "detection": "deepseek.tasks.detection:Detection",
    "diffusion": "deepseek.tasks.diffusion:Diffusion",
    "energies_forces": "deepseek.tasks.energies_forces:EnergiesForces",
    "image_classification": "deepseek.tasks.image_classification:ImageClassification",
    "language_modeling": "deepseek.tasks.language_modeling:LanguageModeling",
    "masked_lm": "deepseek.tasks.masked_lm:MaskedLanguageModeling",
    "regression": "deepseek.tasks.regression:Regression",
    "segment_language_modeling": "deepseek.tasks.segment_language_modeling:SegmentLanguageModeling",
    "segmentation": "deepseek.tasks.segmentation:Segmentation",
    "seq2seq": "deepseek.tasks.seq2seq:SequenceToSequence",
    "speech_recognition": "deepseek.tasks.speech:SpeechRecognition",
}
"""What a model is for: the value of `task.name` in YAML."""


def resolve(table: Mapping[str, str], name: str, kind: str) -> object:
    """Return the object that `name` stands for in `table`; `kind` ("model", "task") is for the error message.

    Raises ConfigError with the nearest known names.
    """
    if name not in table:
        raise ConfigError(f"unknown {kind}", found=repr(name), fix=did_you_mean(name, table))
    return load(table[name])
