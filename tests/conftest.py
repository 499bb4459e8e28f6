"""Fixtures for all tests."""

from tests.faults import faulty_camera
from tests.live import mjpeg_server, own_microphone, virtual_microphone

__all__ = ["faulty_camera", "mjpeg_server", "own_microphone", "virtual_microphone"]
