"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.faults import faulty_camera
from tests.live import mjpeg_server, own_microphone, rtsp_server, virtual_microphone

__all__ = ["faulty_camera", "mjpeg_server", "own_cache", "own_microphone", "rtsp_server", "virtual_microphone"]

# For torch, which is not loaded yet. Networks as small as the tests' take several times as long on two threads where
# the cores are busy: each waits for the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples that are slow where the cores are busy are no failure.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# A shell that puts the tests in the background lets them, and all that they start, ignore Ctrl-C, which they test.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs that tests make are shared among them, and not with the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """Of tests that are run under nohup the children would be deaf to SIGHUP too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
