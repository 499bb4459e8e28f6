"""Speech decision on 30 ms of sound, by WebRTC's detector."""

from __future__ import annotations

import webrtcvad

from stream.items import SAMPLE_RATE_HZ, Pcm

FRAME_MS = 30
FRAME_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000


class VoiceDetector:
    """webrtcvad.

    Args:
        aggressiveness: 0..3; 3 rejects most.
    """

    def __init__(self, aggressiveness: int) -> None:
        self._vad = webrtcvad.Vad(aggressiveness)

    def __call__(self, frame: Pcm) -> bool:
        """True when a frame of FRAME_SAMPLES int16 samples holds speech."""
        return bool(self._vad.is_speech(frame.tobytes(), SAMPLE_RATE_HZ))
