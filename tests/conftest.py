"""Fixtures for all tests."""

from tests.live import mjpeg_server, virtual_microphone

__all__ = ["mjpeg_server", "virtual_microphone"]
