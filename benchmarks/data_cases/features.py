"""Log-mel spectra and cepstra of 10 s clips at 16 kHz: ours against kaldi-native-fbank and librosa.

All run as a loader's workers do, one process a core with one thread, and need not hand their features back; ours takes
several clips at once. Features of some clips are held against the peer's, number by number.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data_cases.case import OURS, Measure

RATE, SECONDS, MELS, MFCC, LIBROSA_MFCC = 16000, 10, 80, 13, 20
WINDOW, HOP, FFT = 400, 160, 512
KALDI, LIBROSA = "kaldi-native-fbank", "librosa"
_REPEATS = 4
_CLIPS, _QUICK_CLIPS, _COMPARED, _TOGETHER = 200, 40, 3, 10


def _measure(name: str, peer: str, target: float) -> Measure:
    needs = {KALDI: "kaldi-native-fbank", LIBROSA: "librosa"}
    return Measure(name, "clips/s", {peer: target}, needs={peer: needs[peer]}, at_most={"max_difference": 1e-3})


MEASURES = (
    _measure("log_mel", KALDI, 1.0),
    _measure("mfcc", KALDI, 1.0),
    _measure("log_mel_centred", LIBROSA, 3.0),
    _measure("mfcc_centred", LIBROSA, 3.0),
)
_PEERS = {measure.name: next(iter(measure.targets)) for measure in MEASURES}


def prepare(folder: Path, quick: bool) -> None:
    """Write the clips: voices that glide in pitch, with pauses, in a room's noise."""
    import numpy as np

    rng, length = np.random.default_rng(0), RATE * SECONDS
    clips = np.empty((_QUICK_CLIPS if quick else _CLIPS, length), dtype=np.float32)
    for row in clips:
        row[:] = _voice(rng, length)
    np.save(folder / "clips.npy", clips)


def run(measure: str, contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float]]:
    """Return clips a second; ours also its largest difference to the peer."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the workers', one a core
    workers = os.cpu_count() or 1
    together = _TOGETHER if contestant == OURS else 1
    with multiprocessing.get_context("spawn").Pool(workers, _start, (measure, contestant, str(folder))) as pool:
        clips = pool.apply(_count)
        parts = [(start, min(start + together, clips)) for start in range(0, clips, together)]
        shares = [parts[worker::workers] * _REPEATS for worker in range(workers)]  # no worker waits for another
        rate = _rate(lambda: pool.map(_features, shares, 1), clips * _REPEATS, seconds=1.0 if quick else 4.0)
    return rate, _difference(measure, folder) if contestant == OURS else {}


def _difference(measure: str, folder: Path) -> dict[str, float]:
    import numpy as np
    import torch

    clips = torch.from_numpy(np.load(folder / "clips.npy")[:_COMPARED])
    ours, peer = _our_function(measure)(clips), _peer_function(measure)
    gaps = [np.abs(found.numpy() - peer(clip.numpy())).max() for found, clip in zip(ours, clips, strict=True)]
    return {"max_difference": float(max(gaps))}


def _our_function(measure: str) -> Callable[[Any], Any]:
    from deepseek.data.audio import MelSettings, log_mel, mfcc

    settings = MelSettings(RATE, "librosa" if measure.endswith("centred") else "kaldi", MELS)
    if measure.startswith("log_mel"):
        return lambda clips: log_mel(clips, settings)
    return lambda clips: mfcc(clips, settings, LIBROSA_MFCC if settings.style == "librosa" else MFCC)


def _peer_function(measure: str) -> Callable[[Any], Any]:
    return (_kaldi if _PEERS[measure] == KALDI else _librosa)(measure.startswith("mfcc"))


def _kaldi(cepstra: bool) -> Callable[[Any], Any]:
    import kaldi_native_fbank
    import numpy as np

    options = kaldi_native_fbank.MfccOptions() if cepstra else kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = MELS
    if cepstra:
        options.num_ceps, options.use_energy = MFCC, False
    make = kaldi_native_fbank.OnlineMfcc if cepstra else kaldi_native_fbank.OnlineFbank

    def features(clip: Any) -> Any:
        computer = make(options)
        computer.accept_waveform(RATE, clip)
        computer.input_finished()
        return np.stack([computer.get_frame(frame) for frame in range(computer.num_frames_ready)])

    return features


def _librosa(cepstra: bool) -> Callable[[Any], Any]:
    import librosa
    import numpy as np

    frames: dict[str, Any] = {"n_fft": FFT, "hop_length": HOP, "win_length": WINDOW, "n_mels": MELS}

    def features(clip: Any) -> Any:
        if cepstra:
            return librosa.feature.mfcc(y=clip, sr=RATE, n_mfcc=LIBROSA_MFCC, **frames).T
        return np.log(np.maximum(librosa.feature.melspectrogram(y=clip, sr=RATE, **frames), 1e-10)).T

    return features


_worker: dict[str, Any] = {}


def _start(measure: str, contestant: str, folder: str) -> None:
    import numpy as np

    from deepseek.hardware import keep_freed_memory

    keep_freed_memory()  # for all contestants, as a loader's worker does
    _worker["clips"] = np.load(Path(folder) / "clips.npy")
    if contestant == OURS:
        import torch

        torch.set_num_threads(1)
        function = _our_function(measure)
        _worker["features"] = lambda clips: function(torch.from_numpy(clips))
    else:
        peer = _peer_function(measure)
        _worker["features"] = lambda clips: [peer(clip) for clip in clips]


def _count() -> int:
    return len(_worker["clips"])


def _features(parts: list[tuple[int, int]]) -> int:
    return sum(len(_worker["features"](_worker["clips"][slice(*part)])) for part in parts)


def _rate(play: Callable[[], object], clips: int, seconds: float) -> float:
    """Return clips a second of `play`, which takes them all, after it has run once."""
    play()
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        play()
        rounds += 1
    return rounds * clips / (time.perf_counter() - start)


def _voice(rng: Any, length: int) -> Any:
    import numpy as np

    times = np.arange(length) / RATE
    pitch = 120 + 60 * rng.random() + 25 * np.sin(2 * np.pi * (0.4 + 0.3 * rng.random()) * times + 6 * rng.random())
    phase = np.cumsum(pitch) / RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    spectrum = np.fft.rfft(pulses)
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    for formant in (500 + 300 * rng.random(), 1500 + 600 * rng.random(), 2700 + 500 * rng.random()):
        spectrum *= 1 / (1 + ((hertz - formant) / 120) ** 2) + 0.05
    voice = np.fft.irfft(spectrum, n=length)
    syllables = np.clip(np.sin(2 * np.pi * 1.7 * times) + 0.4, 0, 1)
    room = np.fft.rfft(rng.standard_normal(length))
    room[1:] /= 0.2 + hertz[1:] / 1000  # a room's noise is loudest at the bottom
    loud = 0.5 * voice * syllables / np.abs(voice).max() + 0.003 * np.fft.irfft(room, n=length)
    return np.round(loud * 32767) / 32768  # as 16-bit files hold it
