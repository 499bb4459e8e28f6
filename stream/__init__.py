"""Live conversation in, emotion events out: time, devices, processes and the wire.

The capture side (capture, vad, segmenter, align, asr, mic, camera, wire, link) never imports torch or engines.
"""
