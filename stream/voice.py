"""A voice as a vector: the GE2E speaker encoder (Wan et al. 2018, arXiv 1710.10467) under ONNX Runtime.

The weights are those that Resemblyzer 0.1.4 carries (Apache-2.0, see stream/weights/README.md), converted once by
bench/make_voice_encoder.py, so that the capture side needs neither torch nor librosa. The graph ends with two steps of
ours: a background voice is subtracted from the mean of the windows, and the length is made one.

Legend: S samples at 16 kHz, T frames of 10 ms, M mel bands (40), B windows of 1.6 s, V values of a voice (256).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.machine import stop_telemetry
from telme.errors import BundleError

Voice = NDArray[np.float32]

WEIGHTS = Path(__file__).with_name("weights") / "voice.onnx"
MEL_BANDS = 40
WINDOW_FRAMES = 160

_FFT_SAMPLES = 400  # 25 ms
_HOP_SAMPLES = 160  # 10 ms
_WINDOW_SAMPLES = WINDOW_FRAMES * _HOP_SAMPLES
_STEP_FRAMES = 77  # 1.3 windows a second, as Resemblyzer takes them
_MAX_WINDOWS = 8  # 7 s of speech; of more, windows spread over it: the cost of an utterance is bounded
_LEVEL = 10 ** (-30 / 20)  # RMS of full scale; what is quieter is raised to it, as in the encoder's training
_SILENCE = 1e-5


class VoiceEncoder:
    """Sound in, voice out. One thread of the processor; safe to call from any thread.

    Args:
        weights: The ONNX file.

    Raises:
        BundleError: It cannot be loaded.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        stop_telemetry()
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it grows with the longest turn so far and gives nothing back
        try:
            self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise BundleError(
                f"{weights}: {str(error)[:200]}", "the voice encoder of the package", "install telme-stream anew"
            ) from error

    def __call__(self, pcm: Pcm) -> Voice:
        """The voice of a stretch of speech.

        Args:
            pcm: int16 [S], at least one sample; best without silence around it. Less than 1.6 s is repeated to fill it.

        Returns:
            float32 [V] of length one. Cosines of two voices tell speakers apart; see stream/speakers.py.
        """
        (voice,) = self._session.run(None, {"mel": windows(pcm)})
        found: Voice = voice
        return found


def windows(pcm: Pcm) -> NDArray[np.float32]:
    """The mel frames of a stretch of speech, cut into windows that overlap by half: float32 [B, WINDOW_FRAMES, M]."""
    sound = pcm.astype(np.float32) / 32768.0
    level = float(np.sqrt(np.mean(np.square(sound))))
    sound = sound * max(_LEVEL / max(level, _SILENCE), 1.0)
    if len(sound) < _WINDOW_SAMPLES:
        sound = np.resize(sound, _WINDOW_SAMPLES)  # repeats it
    mel = _mel_frames(sound)
    last = len(mel) - WINDOW_FRAMES
    count = min(1 + round(last / _STEP_FRAMES), _MAX_WINDOWS)
    starts = np.linspace(0, last, count).astype(int)
    return np.stack([mel[start : start + WINDOW_FRAMES] for start in starts])


def _mel_frames(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel power (not its logarithm), float32 [T, M], as librosa 0.10 makes it: frames centred, zeros at the ends."""
    padded = np.pad(sound, _FFT_SAMPLES // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT_SAMPLES)[::_HOP_SAMPLES]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT_SAMPLES) / _FFT_SAMPLES)
    power = np.square(np.abs(np.fft.rfft(frames * hann.astype(np.float32))))
    return (power @ mel_filters().T).astype(np.float32)


@cache
def mel_filters() -> NDArray[np.float64]:
    """Triangular filters [M, 201] on Slaney's mel scale, each of area one (Auditory Toolbox, 1998).

    Linear to 1 kHz with 200/3 Hz a mel, logarithmic above with 27 mels a factor of 6.4.
    """
    edge_mel = 15.0  # 1 kHz
    top_mel = edge_mel + 27 * np.log(SAMPLE_RATE_HZ / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top_mel, MEL_BANDS + 2)
    edges_hz = np.where(mels < edge_mel, mels * 200 / 3, 1000 * np.power(6.4, (mels - edge_mel) / 27))
    bins_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, _FFT_SAMPLES // 2 + 1)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return filters
