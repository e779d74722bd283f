"""Data: pipelines, readers of data sets, loaders, cleaning and ETL; documents, tokenizers and packed tokens."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.audio.endpoint import TrimSilence
    from deepseek.data.audio.features import Cepstra, Deltas, FeatureExtract, LogMel, MeanVarianceNorm, PreEmphasis
    from deepseek.data.audio.global_norm import GlobalMeanVarianceNorm
    from deepseek.data.audio.noise import AddNoise
    from deepseek.data.audio.resample import Resample
    from deepseek.data.audio.silence import AddSilence
    from deepseek.data.audio.spec_augment import SpecAugment
    from deepseek.data.audio.spec_mix import SpecMix
    from deepseek.data.audio.speed import SpeedPerturb
    from deepseek.data.audio.whisper_features import WhisperFeatures
    from deepseek.data.cooker.config import CookerConfig
    from deepseek.data.cooker.cooker import DataCooker
    from deepseek.data.corpus import python_corpus, write_python_corpus
    from deepseek.data.etl.plan import DataPipeline
    from deepseek.data.image.affine import RandomAffine
    from deepseek.data.image.color import ColorJitter, Grayscale
    from deepseek.data.image.crop import CenterCrop, RandomCrop, RandomResizedCrop
    from deepseek.data.image.elastic import RandomElasticDeformation
    from deepseek.data.image.erase import RandomErasing
    from deepseek.data.image.flip import HorizontalFlip, VerticalFlip
    from deepseek.data.image.mix import CutMix, MixUp
    from deepseek.data.image.mosaic import Mosaic
    from deepseek.data.image.normalize import Normalize
    from deepseek.data.image.resize import Letterbox, Resize
    from deepseek.data.loader import BatchSource, Loader
    from deepseek.data.loaders.chunk_sampler import ChunkSampler
    from deepseek.data.loaders.distributed_dataset import DistributedDataset
    from deepseek.data.loaders.h5_dataset import H5Dataset
    from deepseek.data.packing import PackedDataset
    from deepseek.data.pipeline.collate import collate
    from deepseek.data.pipeline.pipeline import Pipeline
    from deepseek.data.pipeline.stage import BatchStage, Domain, Sample, SampleStage, StageGroup
    from deepseek.data.readers.kdconv import kdconv_chats
    from deepseek.data.readers.opening import open_reader
    from deepseek.data.readers.reader import Reader
    from deepseek.data.record_forms import Message
    from deepseek.data.records import Document, ReadReport, read_documents
    from deepseek.data.spell_text import SpellText
    from deepseek.data.table_columns import TableColumns
    from deepseek.data.token_cache import TokenCache, build_token_cache
    from deepseek.data.token_stream import TokenStream
    from deepseek.data.tokenize import Tokenize
    from deepseek.data.tokenizer import Tokenizer
    from deepseek.data.volume.patches import RandomPatch
    from deepseek.data.volume.window import Window

__all__ = [
    "AddNoise",
    "AddSilence",
    "BatchSource",
    "BatchStage",
    "CenterCrop",
    "Cepstra",
    "ChunkSampler",
    "ColorJitter",
    "CookerConfig",
    "CutMix",
    "DataCooker",
    "Deltas",
    "DataPipeline",
    "DistributedDataset",
    "Document",
    "Domain",
    "FeatureExtract",
    "GlobalMeanVarianceNorm",
    "Grayscale",
    "H5Dataset",
    "HorizontalFlip",
    "Letterbox",
    "Loader",
    "LogMel",
    "MeanVarianceNorm",
    "Message",
    "MixUp",
    "Mosaic",
    "Normalize",
    "PackedDataset",
    "Pipeline",
    "PreEmphasis",
    "RandomAffine",
    "RandomCrop",
    "RandomElasticDeformation",
    "RandomErasing",
    "RandomPatch",
    "RandomResizedCrop",
    "ReadReport",
    "Reader",
    "Resample",
    "Resize",
    "Sample",
    "SampleStage",
    "SpecAugment",
    "SpecMix",
    "SpeedPerturb",
    "SpellText",
    "StageGroup",
    "TableColumns",
    "TokenCache",
    "TokenStream",
    "Tokenize",
    "Tokenizer",
    "TrimSilence",
    "VerticalFlip",
    "WhisperFeatures",
    "Window",
    "build_token_cache",
    "collate",
    "kdconv_chats",
    "open_reader",
    "python_corpus",
    "read_documents",
    "write_python_corpus",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AddNoise": "deepseek.data.audio.noise:AddNoise",
        "AddSilence": "deepseek.data.audio.silence:AddSilence",
        "BatchSource": "deepseek.data.loader:BatchSource",
        "BatchStage": "deepseek.data.pipeline.stage:BatchStage",
        "CenterCrop": "deepseek.data.image.crop:CenterCrop",
        "Cepstra": "deepseek.data.audio.features:Cepstra",
        "ChunkSampler": "deepseek.data.loaders.chunk_sampler:ChunkSampler",
        "ColorJitter": "deepseek.data.image.color:ColorJitter",
        "CookerConfig": "deepseek.data.cooker.config:CookerConfig",
        "CutMix": "deepseek.data.image.mix:CutMix",
        "DataCooker": "deepseek.data.cooker.cooker:DataCooker",
        "Deltas": "deepseek.data.audio.features:Deltas",
        "DataPipeline": "deepseek.data.etl.plan:DataPipeline",
        "DistributedDataset": "deepseek.data.loaders.distributed_dataset:DistributedDataset",
        "Document": "deepseek.data.records:Document",
        "Domain": "deepseek.data.pipeline.stage:Domain",
        "FeatureExtract": "deepseek.data.audio.features:FeatureExtract",
        "GlobalMeanVarianceNorm": "deepseek.data.audio.global_norm:GlobalMeanVarianceNorm",
        "Grayscale": "deepseek.data.image.color:Grayscale",
        "H5Dataset": "deepseek.data.loaders.h5_dataset:H5Dataset",
        "HorizontalFlip": "deepseek.data.image.flip:HorizontalFlip",
        "Letterbox": "deepseek.data.image.resize:Letterbox",
        "Loader": "deepseek.data.loader:Loader",
        "LogMel": "deepseek.data.audio.features:LogMel",
        "MeanVarianceNorm": "deepseek.data.audio.features:MeanVarianceNorm",
        "Message": "deepseek.data.record_forms:Message",
        "MixUp": "deepseek.data.image.mix:MixUp",
        "Mosaic": "deepseek.data.image.mosaic:Mosaic",
        "Normalize": "deepseek.data.image.normalize:Normalize",
        "PackedDataset": "deepseek.data.packing:PackedDataset",
        "Pipeline": "deepseek.data.pipeline.pipeline:Pipeline",
        "PreEmphasis": "deepseek.data.audio.features:PreEmphasis",
        "RandomAffine": "deepseek.data.image.affine:RandomAffine",
        "RandomCrop": "deepseek.data.image.crop:RandomCrop",
        "RandomElasticDeformation": "deepseek.data.image.elastic:RandomElasticDeformation",
        "RandomErasing": "deepseek.data.image.erase:RandomErasing",
        "RandomPatch": "deepseek.data.volume.patches:RandomPatch",
        "RandomResizedCrop": "deepseek.data.image.crop:RandomResizedCrop",
        "ReadReport": "deepseek.data.records:ReadReport",
        "Reader": "deepseek.data.readers.reader:Reader",
        "Resample": "deepseek.data.audio.resample:Resample",
        "Resize": "deepseek.data.image.resize:Resize",
        "Sample": "deepseek.data.pipeline.stage:Sample",
        "SampleStage": "deepseek.data.pipeline.stage:SampleStage",
        "SpecAugment": "deepseek.data.audio.spec_augment:SpecAugment",
        "SpecMix": "deepseek.data.audio.spec_mix:SpecMix",
        "SpeedPerturb": "deepseek.data.audio.speed:SpeedPerturb",
        "SpellText": "deepseek.data.spell_text:SpellText",
        "TableColumns": "deepseek.data.table_columns:TableColumns",
        "StageGroup": "deepseek.data.pipeline.stage:StageGroup",
        "TokenCache": "deepseek.data.token_cache:TokenCache",
        "TokenStream": "deepseek.data.token_stream:TokenStream",
        "Tokenize": "deepseek.data.tokenize:Tokenize",
        "Tokenizer": "deepseek.data.tokenizer:Tokenizer",
        "TrimSilence": "deepseek.data.audio.endpoint:TrimSilence",
        "VerticalFlip": "deepseek.data.image.flip:VerticalFlip",
        "WhisperFeatures": "deepseek.data.audio.whisper_features:WhisperFeatures",
        "Window": "deepseek.data.volume.window:Window",
        "build_token_cache": "deepseek.data.token_cache:build_token_cache",
        "collate": "deepseek.data.pipeline.collate:collate",
        "kdconv_chats": "deepseek.data.readers.kdconv:kdconv_chats",
        "open_reader": "deepseek.data.readers.opening:open_reader",
        "python_corpus": "deepseek.data.corpus:python_corpus",
        "read_documents": "deepseek.data.records:read_documents",
        "write_python_corpus": "deepseek.data.corpus:write_python_corpus",
    },
)
