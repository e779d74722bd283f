"""Sound: files, sample rates, log-mel spectra and cepstra, augmentation, and where speech begins and ends."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.audio.dynamics import deltas, normalize_features, normalize_sliding, pre_emphasis
    from deepseek.data.audio.endpoint import TrimSilence
    from deepseek.data.audio.endpointer import Endpointer, EndpointSettings, Segment, SpeechEvent, detect_speech
    from deepseek.data.audio.features import Cepstra, Deltas, FeatureExtract, LogMel, MeanVarianceNorm, PreEmphasis
    from deepseek.data.audio.global_norm import GlobalMeanVarianceNorm
    from deepseek.data.audio.io import AudioInfo, audio_info, read_audio, stream_audio, write_audio
    from deepseek.data.audio.masking import band_mask, time_warp
    from deepseek.data.audio.mel import MelSettings
    from deepseek.data.audio.noise import AddNoise, add_noise, pink_noise
    from deepseek.data.audio.resample import Resample
    from deepseek.data.audio.resampling import ResampleStream, resample_audio
    from deepseek.data.audio.silence import AddSilence
    from deepseek.data.audio.spec_augment import SpecAugment
    from deepseek.data.audio.spec_mix import SpecMix, mix_spectra
    from deepseek.data.audio.spectrogram import cepstra, fbank, log_mel, mfcc
    from deepseek.data.audio.speed import SpeedPerturb, change_speed
    from deepseek.data.audio.whisper_features import WhisperFeatures

__all__ = [
    "AddNoise",
    "AddSilence",
    "AudioInfo",
    "Cepstra",
    "Deltas",
    "EndpointSettings",
    "Endpointer",
    "FeatureExtract",
    "GlobalMeanVarianceNorm",
    "LogMel",
    "MeanVarianceNorm",
    "MelSettings",
    "PreEmphasis",
    "Resample",
    "ResampleStream",
    "Segment",
    "SpecAugment",
    "SpecMix",
    "SpeechEvent",
    "SpeedPerturb",
    "TrimSilence",
    "WhisperFeatures",
    "add_noise",
    "audio_info",
    "band_mask",
    "cepstra",
    "change_speed",
    "deltas",
    "detect_speech",
    "fbank",
    "log_mel",
    "mfcc",
    "mix_spectra",
    "normalize_features",
    "normalize_sliding",
    "pink_noise",
    "pre_emphasis",
    "read_audio",
    "resample_audio",
    "stream_audio",
    "time_warp",
    "write_audio",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AddNoise": "deepseek.data.audio.noise:AddNoise",
        "AddSilence": "deepseek.data.audio.silence:AddSilence",
        "AudioInfo": "deepseek.data.audio.io:AudioInfo",
        "Cepstra": "deepseek.data.audio.features:Cepstra",
        "Deltas": "deepseek.data.audio.features:Deltas",
        "EndpointSettings": "deepseek.data.audio.endpointer:EndpointSettings",
        "Endpointer": "deepseek.data.audio.endpointer:Endpointer",
        "FeatureExtract": "deepseek.data.audio.features:FeatureExtract",
        "GlobalMeanVarianceNorm": "deepseek.data.audio.global_norm:GlobalMeanVarianceNorm",
        "LogMel": "deepseek.data.audio.features:LogMel",
        "MeanVarianceNorm": "deepseek.data.audio.features:MeanVarianceNorm",
        "MelSettings": "deepseek.data.audio.mel:MelSettings",
        "PreEmphasis": "deepseek.data.audio.features:PreEmphasis",
        "Resample": "deepseek.data.audio.resample:Resample",
        "ResampleStream": "deepseek.data.audio.resampling:ResampleStream",
        "Segment": "deepseek.data.audio.endpointer:Segment",
        "SpecAugment": "deepseek.data.audio.spec_augment:SpecAugment",
        "SpecMix": "deepseek.data.audio.spec_mix:SpecMix",
        "SpeechEvent": "deepseek.data.audio.endpointer:SpeechEvent",
        "SpeedPerturb": "deepseek.data.audio.speed:SpeedPerturb",
        "TrimSilence": "deepseek.data.audio.endpoint:TrimSilence",
        "WhisperFeatures": "deepseek.data.audio.whisper_features:WhisperFeatures",
        "add_noise": "deepseek.data.audio.noise:add_noise",
        "audio_info": "deepseek.data.audio.io:audio_info",
        "band_mask": "deepseek.data.audio.masking:band_mask",
        "cepstra": "deepseek.data.audio.spectrogram:cepstra",
        "change_speed": "deepseek.data.audio.speed:change_speed",
        "deltas": "deepseek.data.audio.dynamics:deltas",
        "detect_speech": "deepseek.data.audio.endpointer:detect_speech",
        "fbank": "deepseek.data.audio.spectrogram:fbank",
        "log_mel": "deepseek.data.audio.spectrogram:log_mel",
        "mfcc": "deepseek.data.audio.spectrogram:mfcc",
        "mix_spectra": "deepseek.data.audio.spec_mix:mix_spectra",
        "normalize_features": "deepseek.data.audio.dynamics:normalize_features",
        "normalize_sliding": "deepseek.data.audio.dynamics:normalize_sliding",
        "pink_noise": "deepseek.data.audio.noise:pink_noise",
        "pre_emphasis": "deepseek.data.audio.dynamics:pre_emphasis",
        "read_audio": "deepseek.data.audio.io:read_audio",
        "resample_audio": "deepseek.data.audio.resampling:resample_audio",
        "stream_audio": "deepseek.data.audio.io:stream_audio",
        "time_warp": "deepseek.data.audio.masking:time_warp",
        "write_audio": "deepseek.data.audio.io:write_audio",
    },
)
