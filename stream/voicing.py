"""How clearly a sound has the pitch of one voice: what tells a speaker from the murmur of several."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stream.items import SAMPLE_RATE_HZ, Pcm

_FRAME = SAMPLE_RATE_HZ * 40 // 1000
_HOP = SAMPLE_RATE_HZ * 10 // 1000
_LEAST_LAG, _MOST_LAG = SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 70  # of voices between 70 and 400 Hz
# Hum and rumble, which have a period of their own, lie below; a voice's harmonics above have that of its pitch.
_LEAST_HZ = 150
_FFT = 1024
_FRAMES_AT_ONCE = 256
_NOTHING = 1e-3  # far above what rounding leaves of silence, far below what a sample of 1 has


def periodicity(pcm: Pcm) -> float:
    """Mean over 40 ms frames, weighted by their energy, of how alike a frame is to what follows a period later.

    The normalised cross-correlation of RAPT (Talkin 1995), at its highest between 70 and 400 Hz, of what lies above 150
    Hz. A voice alone mostly has 0.7 to 1, in noise of 10 dB less, six at once 0.4 to 0.7 (bench/LOG.md).

    Args:
        pcm: int16 [S] at 16 kHz.

    Returns:
        0..1; 0 for less than 54 ms and for silence.
    """
    span = _FRAME + _MOST_LAG
    if len(pcm) < span:
        return 0.0
    windows = sliding_window_view(_without_hum(pcm), span)[::_HOP]
    clearest, energy = 0.0, 0.0
    for first in range(0, len(windows), _FRAMES_AT_ONCE):
        peaks, energies = _peaks(windows[first : first + _FRAMES_AT_ONCE])
        clearest += float(peaks @ energies)
        energy += float(energies.sum())
    return clearest / energy if energy > _NOTHING else 0.0


def _without_hum(pcm: Pcm) -> NDArray[np.float64]:
    """What of a sound [S] lies above 150 Hz."""
    size = 1 << (len(pcm) - 1).bit_length()  # of which transforms are fast
    spectrum = np.fft.rfft(pcm - pcm.mean(), size)
    spectrum[: _LEAST_HZ * size // SAMPLE_RATE_HZ + 1] = 0
    return np.fft.irfft(spectrum, size)[: len(pcm)]


def _peaks(windows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of frames [N, frame and longest lag]: the highest correlation with a later one [N], 0..1, and the energy [N]."""
    windows = windows - windows[:, :_FRAME].mean(1, keepdims=True)
    frames = windows[:, :_FRAME]
    spectra = np.fft.rfft(windows, _FFT) * np.conj(np.fft.rfft(frames, _FFT))
    products = np.fft.irfft(spectra, _FFT)[:, _LEAST_LAG : _MOST_LAG + 1]
    sums = np.pad(np.cumsum(np.square(windows), 1), ((0, 0), (1, 0)))
    lags = np.arange(_LEAST_LAG, _MOST_LAG + 1)
    later = sums[:, lags + _FRAME] - sums[:, lags]
    energies = sums[:, _FRAME]
    alike = products / np.sqrt(np.maximum(later * energies[:, None], _NOTHING))
    return np.clip(alike.max(1), 0.0, 1.0), energies
